"""Puts the recipes of `configs/` into the wheel, as `lit_distil/configs/`; all else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Builds the package as usual. An editable installation reads the recipes from the checkout."""

    def run(self) -> None:
        """Build, and copy the recipes."""
        super().run()
        if self.editable_mode:
            return
        for recipe in Path("configs").rglob("*.yaml"):
            target = Path(self.build_lib, "lit_distil", recipe)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(recipe, target)


setup(cmdclass={"build_py": BuildWithRecipes})
