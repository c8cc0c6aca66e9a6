"""`lit-distil recipes`: the configurations that come with the package.

They are the files in `configs/` of a checkout, which a wheel installs as `lit_distil/configs/`.
"""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path

from lit_distil.messages import recipes_folder


def recipe_names() -> list[str]:
    """All recipes and overlays, such as `distill/distilroberta-small`."""
    folder = recipes_folder()
    # without the published scores, and without the arms of claims, which only `lit-distil claims` can combine
    files = (path for path in folder.rglob("*.yaml") if path.stem != "papers" and path.parent.parent.name != "claims")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)


def find_recipe(name: str) -> Path:
    """The file of a recipe, by its path without `.yaml`, or by the last part of it if that is unique.

    Raises:
        ValueError: There is no such recipe, or several.
    """
    wanted, names = name.removesuffix(".yaml"), recipe_names()
    found = [each for each in names if each == wanted] or [each for each in names if each.split("/")[-1] == wanted]
    if len(found) > 1:
        raise ValueError(f"recipe: {name!r} may be {' or '.join(found)}; give one of these names")
    if not found:
        short = {each.split("/")[-1]: each for each in names}
        near = difflib.get_close_matches(wanted.split("/")[-1], short, n=3)
        hint = f"; did you mean {' or '.join(short[each] for each in near)}?" if near else ""
        raise ValueError(f"recipe: no recipe {name!r}{hint} (`lit-distil recipes` lists them)")
    return recipes_folder() / f"{found[0]}.yaml"


def summary(path: Path) -> str:
    """The first sentence of the comment at the top of a recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment: list[str] = []
    for line in lines:
        if not line.startswith("#") or line.startswith("#  "):  # the settings begin, or an indented command line
            break
        comment.append(line.lstrip("# "))
    return re.split(r"(?<!et al)\. ", " ".join(comment))[0].rstrip(".:")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="lit-distil recipes",
        description="List the configurations that come with the package, or print one.",
        epilog="examples:\n"
        "  lit-distil recipes\n"
        "  lit-distil recipes distilroberta-small > mine.yaml\n"
        "  lit-distil fit --config recipe:distilroberta-small --trainer.max_steps 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="the recipe to print; without it, all are listed")
    return parser


def run(arguments: list[str]) -> None:
    """List the recipes, or print one."""
    name = make_parser().parse_args(arguments).name
    if name is not None:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
        return
    names = recipe_names()
    width = max(map(len, names))
    for each in names:
        print(f"{each:<{width}}  {summary(recipes_folder() / f'{each}.yaml')}")
