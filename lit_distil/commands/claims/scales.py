"""A scale: the papers' claims at another size, or from another network, in one YAML file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lit_distil.commands.claims.verdicts import CLAIM, load_claim
from lit_distil.files import write_file
from lit_distil.messages import read_settings, read_yaml

Settings = dict[str, Any]
EVERY = "every"  # base


@dataclass(frozen=True)
class Scale:
    """What changes. Bases change alike for all their arms, so that arms differ as before.

    Attributes:
        times: By base: factors by the name of a setting. They multiply it wherever it stands, in the base and in the
            arms over it.
        over: By base, or for `every` one: a configuration that lies over it.
        arms: By claim/arm: a configuration in place of the arm's own file.
        bases: By name: more bases, whole configurations.
        claims: By claim: what lies over its `claim.yaml`. Mappings merge, lists are replaced; an arm that is null goes.
        about: What the scale is, in Markdown with a heading: the beginning of its page.
    """

    times: dict[str, dict[str, float]] = field(default_factory=dict)
    over: dict[str, Settings] = field(default_factory=dict)
    arms: dict[str, Settings] = field(default_factory=dict)
    bases: dict[str, Settings] = field(default_factory=dict)
    claims: dict[str, Settings] = field(default_factory=dict)
    about: str = ""


def scale_file(scales: Path, scale: str) -> Path:
    """The file of a scale, by its name or by its own path."""
    own = Path(scale)
    for file in (scales / f"{scale}.yaml", own):
        if file.is_file() and file.resolve().parent != scales.resolve() and (scales / f"{own.stem}.yaml").is_file():
            raise ValueError(f"scale: {scale!r} would have the results of the scale {own.stem!r}; give it another name")
        if file.is_file():
            return file
    known = sorted(file.stem for file in scales.glob("*.yaml"))
    raise ValueError(f"scale: no scale and no file {scale!r}; there are {known}, or give a file of your own")


def load_scale(file: Path | None, root: Path) -> Scale:
    """Read a scale; None is one that changes nothing.

    Args:
        file: The YAML file.
        root: Folder of the claims.

    Raises:
        ValueError: The file is no YAML, has a part or a value that is none, or names a base, an arm, a claim or a
            setting that is none.
    """
    if file is None:
        return Scale()
    content = read_yaml(file)
    parts = [one.name for one in fields(Scale)]
    if not isinstance(content, dict) or (wrong := sorted(map(str, content.keys() - {*parts}))):
        found = f"{wrong[0]!r} is no part of a scale" if isinstance(content, dict) else "it is no mapping"
        raise ValueError(f"{file}: {found}; a scale has {', '.join(parts)}")
    bases, claims = ([one.stem for one in root.glob("*.yaml")], [one.parent.name for one in root.glob(f"*/{CLAIM}")])
    files = [*root.glob("*.yaml"), *(one for name in claims for one in (root / name).glob("*.yaml"))]
    arms = [f"{one.parent.name}/{one.stem}" for one in files if one.parent != root and one.name != CLAIM]
    known = {"times": bases, "over": [*bases, EVERY], "arms": arms, "claims": claims, "bases": None}
    for part, names in known.items():
        for name, value in _mapping(file, part, content.get(part, {})).items():
            if names is not None and name not in names:
                raise ValueError(f"{file}: {part}: there is no {name!r}; there are {sorted(names)}")
            if part == "bases" and "/" in str(name):
                raise ValueError(f"{file}: bases: {name!r} must be a name, not a path")
            _mapping(file, f"{part}.{name}", value)
    _check_factors(file, content.get("times", {}), {name for one in files for name in _names(read_settings(one))})
    for name, claim in content.get("claims", {}).items():
        for arm, spec in _mapping(file, f"claims.{name}.arms", claim.get("arms", {})).items():
            if spec is not None:
                _mapping(file, f"claims.{name}.arms.{arm}", spec)
            elif arm not in load_claim(root / name).arms:
                raise ValueError(f"{file}: claims.{name}.arms: there is no {arm!r} to leave out")
    if not isinstance(content.get("about", ""), str):
        raise ValueError(f"{file}: about must be a text, got {content['about']!r}")
    return Scale(**content)


def write_scaled(root: Path, scale: Scale, out: Path, *, text: str | None = None) -> Path:
    """Write all claims at another size, and remove what an earlier call wrote of arms that are gone.

    Args:
        root: Folder of the claims.
        scale: What changes.
        out: Where to write.
        text: File that the bases without a task train on; a tenth of it is held out.

    Returns:
        `out`, which can take the place of `root`.
    """

    written: set[Path] = set()

    def write(file: Path, content: Any) -> None:
        path = out / file.relative_to(root)
        write_file(path, yaml.safe_dump(content, sort_keys=False))
        written.add(path)

    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(root.glob("*.yaml")):
        content = _multiplied(read_settings(file), scale.times.get(file.stem, {}))
        content = _laid_over(_laid_over(content, scale.over.get(EVERY, {})), scale.over.get(file.stem, {}))
        if text is not None and "task" not in content["data"]["init_args"]:
            files = {"class_path": "lit_distil.data.TextFiles", "init_args": {"train": text}}
            held_out = {"class_path": "lit_distil.data.HeldOut", "init_args": {"source": files}}
            content["data"]["init_args"]["source"] = held_out
        write(file, content)
    for name, content in scale.bases.items():
        write(root / f"{name}.yaml", content)
    for file in sorted(root.glob(f"*/{CLAIM}")):
        load_claim(file.parent)  # tells what is wrong with it
        (out / file.parent.name).mkdir(exist_ok=True)
        claim = _laid_over(read_settings(file), scale.claims.get(file.parent.name, {}))
        claim["arms"] = {arm: spec for arm, spec in claim["arms"].items() if spec is not None}
        write(file, claim)
        for arm, spec in claim["arms"].items():
            if (own := file.with_name(f"{arm}.yaml")).is_file():
                replaced = scale.arms.get(f"{file.parent.name}/{arm}")
                scaled = _multiplied(read_settings(own), scale.times.get(spec["base"], {}))
                write(own, scaled if replaced is None else replaced)
        for left in set((out / file.parent.name).glob("*.yaml")) - written:  # in the claims' folders only
            left.unlink(missing_ok=True)
    return out


def _mapping(file: Path, place: str, value: Any) -> Settings:
    if not isinstance(value, dict):
        raise ValueError(f"{file}: {place} must be a mapping, got {value!r:.40}")
    return value


def _check_factors(file: Path, times: Mapping[str, Mapping[str, Any]], settings: Collection[str]) -> None:
    for base, factors in times.items():
        for name, factor in factors.items():
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
                raise ValueError(f"{file}: times.{base}.{name} must be a number above 0, got {factor!r}")
            if name not in settings:
                raise ValueError(f"{file}: times.{base}.{name}: no claim has a number {name!r}")


def _names(value: Any) -> Iterator[str]:
    """The keys of all numbers in a configuration, those of mappings within it included; one that is not set counts."""
    if isinstance(value, dict):
        for key, one in value.items():
            if one is None or type(one) in (int, float):
                yield key
            yield from _names(one)


def _laid_over(below: Any, above: Any) -> Any:
    """Settings over others; another class takes none of the arguments below it."""
    is_whole = not (isinstance(below, dict) and isinstance(above, dict))
    if is_whole or above.get("class_path", below.get("class_path")) != below.get("class_path"):
        return above
    return below | {key: _laid_over(below.get(key), value) for key, value in above.items()}


def _multiplied(value: Any, factors: Mapping[str, float]) -> Any:
    """A configuration with these settings multiplied, wherever they stand; a whole number stays one."""
    if not isinstance(value, dict):
        return value
    return {
        key: type(one)(one * factors[key])
        if key in factors and type(one) in (int, float)
        else _multiplied(one, factors)
        for key, one in value.items()
    }
