"""The pages of the claims: one table of all verdicts, and a page and a figure for each, made from the results alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_distil.commands.claims.verdicts import (
    SIZE,
    Effect,
    Estimate,
    Measured,
    Point,
    half_width_of_groups,
)
from lit_distil.commands.pages import Section, parts_of, to_markdown, with_part
from lit_distil.commands.report.arms import half_width, with_interval
from lit_distil.commands.report.plots import Size, plot_effects, plot_sizes
from lit_distil.console import Table, bullets, markdown_table
from lit_distil.files import write_file

_INTRODUCTION = """\
# The papers' claims

Each claim is an experiment on small networks. `lit-distil claims NAME` runs one and computes its verdict.

An effect is a difference between arms. It is computed for each seed, and its 95 % interval is for the mean over the
seeds (Student's t). An effect *holds* if the whole interval lies above the margin in the claim's file, *does not hold*
if it lies below, and is *undecided at this size* otherwise. A claim holds if all its effects hold, and does not hold if
one of them does not; effects marked *shown only* do not count. With many effects, one may fail by chance. Margins were
set before the first run; the pages say what was added or changed later.

For a task, the interval also includes the sampling of its test rows. No interval includes the choice of the held-out
text. The table shows the *deciding effect*: the first one with the claim's verdict. Students train with other masks
than their teacher did, and mostly on other sequences: about a third are the same, and all where the text is little.

The verdicts are about these small networks and this text. Read "Before you believe it" on each page. The runs write
`results/claims`, and the pages are made from these files: `lit-distil claims --only_pages true --docs docs`, and then
the same with `--scale minilm`. Results up to 29 November 2026 name the commit at which they were written, which may be
later than that of the training; `+` after a commit means uncommitted changes. Commit 6b70c5b41 was not published: its
code is that of fad0709, its configurations those of a1fdc1e.
"""

_LARGER = """\
## Ten times larger, on one GPU

`make claims-gpu CLAIM=soft-targets` runs a claim with nine times the parameters in the layers and ten times the tokens
(`configs/claims/scales/gpu.yaml`), four runs side by side. It can be stopped and given again like the others. The
results go to `results/claims-gpu`. It has not been run on a GPU yet.

Soft targets have 36 runs with 215M tokens in 21,000 steps, 6.7 PFLOP in all. At an MFU of 35 % an H100 would take 19
seconds, but launching the kernels of such small networks takes longer than that. At 20 ms a step the 21,000 steps take
7 minutes, an MFU of 1.6 %. Starting 36 processes, 15 seconds each and four at a time, takes 2 minutes more. `make
claims-gpu DRY=H100` prints this estimate for any claim.

## From a real network

`make claims-minilm` tests soft targets, DistilBERT's ablation and half the layers on MiniLM (6 layers of 384), which is
first adapted to your text as a masked language model. Students are fine-tuned on public tasks. [Its
page](claims-minilm.md) lists the files you bring; MiniLM itself (82 MB) is downloaded. `make claims-minilm DRY=cpu`
estimates how long the missing runs take. It assumes sequences of full length and the speed of larger networks. [The
guide to sentence encoders](guides/sentence-encoder.md) shows what half of MiniLM keeps as one.

<!-- claims-minilm:begin -->
<!-- claims-minilm:end -->

## A scale of your own

`--scale mine.yaml` runs the claims at your size. The file changes the bases that arms share, so arms differ as before:

| part | what it says |
| --- | --- |
| `times` | by base: factors of settings, such as `pretrain: {hidden_size: 2, lr: 0.5}`, in the base and in its arms |
| `over` | by base, or for `every` one: a configuration that lies over it |
| `arms` | by claim/arm: a configuration in place of the arm's own file |
| `bases` | more bases, whole configurations |
| `claims` | by claim: what lies over its `claim.yaml`; an arm that is null goes, and a list is replaced as a whole |
| `about` | the beginning of its page, in Markdown |

Its results go to `results/claims-mine`. `lit-distil claims --scale mine.yaml --only_pages true --docs docs` makes its
pages, `docs/claims-mine.md` and those of the claims that have results.
"""

_TIMED = """\
Milliseconds are for the encoder on one sequence of 64 tokens with one thread. Each run takes the median of 30 calls
right after its training, while other runs may still be working. That can only add time, so the table has the smallest
value of all runs with as many layers. How many times as fast a network is as the one it started from is measured by
running the two in turn. Parameters are those of the whole network, with its head."""

_OF_ROWS = """\
All arms have the same test rows, so the sampling error is that of the difference: the effect is computed again without
each of 20 groups of rows (delete-a-group jackknife). Its square is added to that of the seeds' interval."""


@dataclass(frozen=True)
class Suite:
    """All claims at one size.

    Attributes:
        name: `claims`, or `claims-` and the name of the scale: a folder of `results`, and one of the documentation.
        options: What the command line takes behind the names of claims.
        about: The scale in words, Markdown; empty for the small claims.
    """

    name: str = "claims"
    options: str = ""
    about: str = ""


def summary_table(measured: Sequence[Measured], *, pages: str | None = None, is_brief: bool = False) -> Table:
    """A row for each claim: its verdict, the first effect that decides it, the seeds and what it cost.

    Args:
        measured: The claims.
        pages: The folder of pages that it links to; None links to none, and names a claim by its folder.
        is_brief: Leave out the deciding effects and the minutes.
    """
    columns = ["deciding effect", "margin"] if pages is None else ["deciding effect, and its margin"]
    table = [["claim", "verdict", "effects that hold", *columns, "seeds", "minutes"]]
    for one in measured:
        claim, verdicts = one.claim, [estimate.verdict for _, estimate in one.deciding]
        effect, found = one.deciding[verdicts.index(one.verdict) if one.verdict in verdicts else 0]
        title = claim.name if pages is None else f"[{claim.title}]({pages}/{claim.name}.md)"
        value, margin = _effect(found), _margin(effect)
        cells = [f"{verdicts.count('holds')} of {len(verdicts)}"]
        cells += [value, margin] if pages is None else [f"{effect.label}: {value} ({margin})"]
        cells += [str(len(found.by_seed) or "–"), f"{_minutes(one):.0f}"]
        table.append([title, one.verdict if pages is None else f"**{one.verdict}**", *cells])
    return [[*row[:3], row[-2]] for row in table] if is_brief else table


def claim_page(measured: Measured, figure: str | None, curves: str | None = None, *, suite: Suite = Suite()) -> str:
    """The page of a claim, as Markdown.

    Args:
        measured: The claim and its results.
        figure: Name of the picture of the effects beside the page; None without one.
        curves: Name of the picture of quality against size; None without one.
        suite: Which claims it is of.
    """
    claim, estimates = measured.claim, measured.estimates
    figures = [f"{label}: {value}" for label, value in claim.figures.items()]
    paper = [f"{claim.paper}: {claim.says}", *figures]
    here = [claim.compares]
    if claim.bases:  # otherwise nothing is trained
        here += [f"Matched in: {claim.matched}.", f"Measured: `{claim.metric}` at the last validation."]
        here += [f"Base `{base}`: {settings}." for base, settings in claim.bases.items()]
    here += [f"Arms of one base differ only in {', '.join(f'`{key}`' for key in claim.keys)}."] if claim.keys else []
    here.append(f"The arms are in `configs/claims/{claim.name}`, the results in `results/{suite.name}/{claim.name}`.")
    verdict = [f"**{measured.verdict}**"]
    if not measured.has_learned:
        verdict.append(f"No arm is better than {claim.learned:g}, so no difference could show here.")
    if measured.verdict != "holds":
        verdict += [claim.shows_at] if claim.shows_at else []
        verdict += (
            [] if suite.about else [f"Ten times larger, on one GPU: `lit-distil claims {claim.name} --scale gpu`."]
        )
    most = max(len(one.by_seed) for one in estimates)
    lines = [
        f"{effect.label}: {_effect(one)}{_of_rows(one)} (margin {_margin(effect)}): {one.verdict}"
        f"{_notes(effect, one, most)}"
        for effect, one in zip(claim.effects, estimates, strict=True)
    ]
    lines += [_OF_ROWS] if any(one.of_rows is not None for one in estimates) else []
    sections = [Section("What the paper says", lines=paper), Section("What is compared", lines=here)]
    sections += [Section("Verdict", lines=[*verdict, *lines])]
    sections += [Section("Before you believe it", lines=claim.caveats)] if claim.caveats else []
    page = to_markdown(claim.title, sections)
    page += f"\n![The effects of {claim.title}, with their intervals and margins]({figure})\n" if figure else ""
    if curves:
        page += f"\n## Quality, size and latency\n\n![Quality against parameters and milliseconds]({curves})\n"
        page += f"\n{markdown_table(_sizes_table(measured))}\n\n{_TIMED}\n"
    table, cost = _arms_table(measured), _cost(measured)
    page += f"\n## Each arm\n\n{markdown_table(table)}\n" if len(table) > 1 else ""
    missing = sorted(set(claim.arms) - {result["arm"] for result in measured.results})
    page += f"\nNot run yet: {', '.join(missing)}.\n" if missing and measured.results else ""
    on_the_way = _way_table(measured)
    page += f"\n## During training\n\n{markdown_table(on_the_way)}\n" if len(on_the_way) > 1 else ""
    seeds = max((result["seed"] for result in measured.results), default=0)
    options = suite.options + (f" --seeds {seeds}" if seeds else "")
    page += f"\n## Run it\n\n```\nlit-distil claims {claim.name}{options}\n```\n"
    return page + (f"\n{bullets(cost)}\n" if cost else "")


def write_claim_pages(measured: Sequence[Measured], docs: Path, suite: Suite = Suite()) -> None:
    """Write the page of all verdicts, a page and a figure for each claim, and the tables that other pages show.

    The README beside the documentation, and `claims.md`, show a table between two comments: `<!-- claims:begin -->` and
    `<!-- claims:end -->`, or with the name of another suite.
    """
    if suite.about:  # few of the claims are there at every scale
        measured = [one for one in measured if one.results]
    pages, summary = docs / suite.name, docs / f"{suite.name}.md"
    table, readme = markdown_table(summary_table(measured, pages=suite.name)), docs.parent / "README.md"
    if suite.about:
        write_file(summary, f"{suite.about}\n{table}\n\n{_whole_cost(measured)}\n")
        _show(summary.with_name("claims.md"), suite.name, table)
    else:
        others = parts_of(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
        write_file(summary, f"{_INTRODUCTION}\n{table}\n\n{_whole_cost(measured)}\n\n{_LARGER}")
        for name, text in others.items():
            _show(summary, name, text)
    run = [one for one in measured if one.verdict != "not run"]
    linked = f"{docs.name}/{suite.name}"
    _show(readme, suite.name, markdown_table(summary_table(run, pages=linked, is_brief=True)), f"{linked}/")
    pages.mkdir(exist_ok=True)
    for one in measured:
        name, effects, lines = one.claim.name, _shown(one), _lines(one)
        pictures = f"{name}.svg" if effects else None, f"{name}-sizes.svg" if lines else None
        for old in {f"{name}.svg", f"{name}-sizes.svg"}.difference(pictures):
            (pages / old).unlink(missing_ok=True)
        if effects:
            path = pages / f"{name}.svg"
            plot_effects(path, [_drawn(*each) for each in effects], unit=f"effect on {one.claim.metric}")
        if lines:
            drawn = [(label, {line: [_size(each) for each in row[line]] for line in row}) for label, row in lines]
            plot_sizes(pages / f"{name}-sizes.svg", drawn)
        write_file(pages / f"{name}.md", claim_page(one, *pictures, suite=suite))


def _show(page: Path, name: str, table: str, pages: str = "") -> None:
    """Put a table between the comments of its name, if the page is there and shows no other folder's pages there."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    shown = parts_of(text).get(name)
    if shown is not None and ("](" not in shown or f"]({pages}" in shown):
        write_file(page, with_part(text, name, table))


def _lines(measured: Measured) -> list[tuple[str, dict[str, list[Point]]]]:
    """The curves that have points, each with the label of its quality."""
    found = []
    for curves in measured.claim.curves:
        lines = {name: measured.line(arms, curves.metric) for name, arms in curves.lines.items()}
        if any(lines.values()):
            found.append((curves.label, lines))
    return found


def _sizes_table(measured: Measured) -> Table:
    """A row for each network of the curves."""
    table = [["quality", "networks", "arm", "layers", "parameters", "ms", "mean over the seeds"]]
    for label, lines in _lines(measured):
        for name, points in lines.items():
            for one in points:
                cells = [str(one.layers), f"{one.parameters:,}", f"{one.milliseconds:.2f}"]
                table.append([label, name, one.arm, *cells, _number(one.quality, one.half)])
    return table


def _arms_table(measured: Measured) -> Table:
    """A row for each arm and metric by which an effect judges arms of the same base; if none does, all metrics."""
    claim = measured.claim
    looked: dict[str, set[str]] = {}
    for effect in claim.effects:
        for arm in effect.names:
            looked.setdefault(claim.arms[arm].base, set()).add(claim.metric_of(arm, effect.metric))
    table = [["arm", "metric", "mean over the seeds", "each seed"]]
    for metric in claim.metrics:
        values = {} if metric.startswith(SIZE) else measured.values(metric)  # sizes have their own table
        for arm, spec in claim.arms.items():
            if (by_seed := values.get(arm)) and metric in looked.get(spec.base, claim.metrics):
                cell = _number(fmean(by_seed.values()), half_width([*by_seed.values()]))
                if groups := measured.groups(metric, [arm]):
                    of_rows = half_width_of_groups([fmean(one[arm].values()) for one in groups])
                    cell += f", ± {of_rows:.3f} over the rows"
                table.append([arm, metric, cell, ", ".join(f"{value:.4g}" for value in by_seed.values())])
    return table


def _way_table(measured: Measured) -> Table:
    """A row for each effect that was measured on the way: its value at each validation, and at the end."""
    table = [["effect", "after steps", "value"]]
    for effect in measured.claim.effects:
        steps = measured.steps(effect)
        table += [[effect.label, f"{step:,}", _effect(measured.estimate(effect, step))] for step in steps]
        table += [[effect.label, "all", _effect(measured.estimate(effect))]] if steps else []
    return table


def _cost(measured: Measured) -> list[str]:
    """What the runs took, and on what; one line for each kind of machine."""
    if not measured.results:
        return []
    commits: dict[tuple[tuple[str, Any], ...], dict[str, None]] = {}  # by what they ran on
    for result in measured.results:
        made = {name: value for name, value in result.get("made_with", {}).items() if value is not None}
        commit = made.pop("git_commit", None)
        sha, changes, _ = (commit or "").partition("+")
        commits.setdefault(tuple(made.items()), {}).update({sha[:9] + changes: None} if commit else {})
    minutes = f"{_minutes(measured):.0f} minutes of training by the clock, with one thread each"
    beside = "other programs may have run at the same time, and claims that share a run count it again"
    lines = [f"{len(measured.results)} runs, {minutes}; {beside}"]
    if not measured.claim.bases:
        lines = [f"{len(measured.results)} measurements with numbers drawn anew; nothing is trained"]
    for made_with, found in commits.items():
        at = f"; {'commit' if len(found) == 1 else 'commits'} {', '.join(found)}" if found else ""
        lines.append(", ".join(f"{name} {value}" for name, value in made_with) + at)
    return lines


def _whole_cost(measured: Sequence[Measured]) -> str:
    """What all runs took, each counted once."""
    trained = [one for claim in measured for one in claim.results if "minutes" in one]
    runs = {(one["recipe"], one["seed"], one["minutes"]) for one in trained}  # one trained again has another time
    hours = sum(minutes for *_, minutes in runs) / 60
    return f"""\
All claims together are {len(runs)} runs, counted once where claims share them, and {hours:.1f}
hours of training with one thread each, without start-up and validation. Two run side by side."""


def _minutes(measured: Measured) -> float:
    return sum(result.get("minutes", 0.0) for result in measured.results)


def _effect(one: Estimate) -> str:
    return "–" if one.mean is None else _number(one.mean, one.half, sign=True)


def _margin(effect: Effect) -> str:
    return f"{effect.margin:g}".replace("-", "−")


def _of_rows(one: Estimate) -> str:
    return "" if one.of_rows is None else f", of which ± {one.of_rows:.3f} from the rows"


def _notes(effect: Effect, one: Estimate, most: int) -> str:
    """What to know about an effect beside the others of its claim, the most seeds of which are given."""
    notes = [] if effect.decides else ["shown only"]
    best = [arm for arm in one.arms if arm not in effect.arms]
    notes += [f"best of their groups: {' and '.join(best)}"] if best else []
    notes += [] if one.has_learned else [f"no arm reached {effect.learned:g}, so it is not judged"]
    notes += ["a single seed has no interval"] if len(one.by_seed) == 1 else []
    notes += [f"{len(one.by_seed)} seeds"] if 1 < len(one.by_seed) < most else []
    return f" ({'; '.join(notes)})" if notes else ""


def _number(mean: float, half: float | None, *, sign: bool = False) -> str:
    if half is not None and max(abs(mean), half) < 1e-6:  # rounding, of a claim that is exact
        return f"{mean:.0e} ± {half:.0e}".replace("0e+00", "0").replace("-", "−")
    return with_interval(mean, half, sign=sign)


def _shown(measured: Measured) -> list[tuple[Effect, Estimate]]:
    """The effects that the figure shows: those that were measured, without sizes, which have other units."""
    pairs = zip(measured.claim.effects, measured.estimates, strict=True)
    return [pair for pair in pairs if pair[1].mean is not None and not str(pair[0].metric).startswith(SIZE)]


def _size(one: Point) -> Size:
    return one.parameters, one.milliseconds, one.quality, one.half or 0.0


def _drawn(effect: Effect, one: Estimate) -> tuple[str, list[float], float, float, float]:
    assert one.mean is not None
    label = f"{effect.label} ({effect.metric})" if isinstance(effect.metric, str) else effect.label
    return label, [*one.by_seed.values()], one.mean, one.half or 0.0, effect.margin
