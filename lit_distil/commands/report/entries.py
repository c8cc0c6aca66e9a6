"""Measure networks on the same held-out data, next to baselines without a network; as tables and findings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from lit_distil.callbacks.evaluations import confusion_of
from lit_distil.commands.benchmark.latency import DISTILBERT_TABLE_3, NetworkBenchmark, hardware_lines, measure_networks
from lit_distil.commands.pages import Section
from lit_distil.commands.report.confusions import confusion_sections
from lit_distil.commands.report.plots import Point, plot_curves, plot_quality
from lit_distil.commands.report.runs import read_metrics
from lit_distil.console import Table, progress_bar, signed
from lit_distil.data import EvalLoader, MaskedSequences, TextDataModule
from lit_distil.models import Pretrained
from lit_distil.modules import FineTuningModule, MaskedLMModule
from lit_distil.objectives.metrics import Confusion
from lit_distil.run import quieten


@dataclass(frozen=True)
class Entry:
    """One network of a report.

    Attributes:
        label: Its name in tables and pictures.
        pretrained: Folder of the run that pretrained or distilled it, if any.
        finetuned: Folder of the run that fine-tuned it, if any.
    """

    label: str
    pretrained: str | None = None
    finetuned: str | None = None


@dataclass(frozen=True)
class MaskedLMScore:
    """On the masked tokens of the test split: mean cross-entropy in nats, its exponential, and accuracy."""

    loss: float
    perplexity: float
    accuracy: float


@dataclass(frozen=True)
class TaskScore:
    """On the rows of the test split: accuracy, its standard error given the number of rows, F1, and loss in nats."""

    accuracy: float
    accuracy_error: float
    macro_f1: float
    loss: float


@dataclass(frozen=True)
class Floors:
    """Baselines that need no network, on the same test data.

    Attributes:
        num_masked: Masked tokens of the test split.
        unigram_loss: Their cross-entropy under the token frequencies of the training corpus, in nats.
        num_rows: Labelled rows of the task's test split.
        majority_accuracy: Accuracy of always predicting their most frequent class.
    """

    num_masked: int
    unigram_loss: float
    num_rows: int | None
    majority_accuracy: float | None


@dataclass(frozen=True)
class EntryResult:
    """The results of one entry; None if it has no such run. `curve` is (step, validation loss)."""

    label: str
    masked_lm: MaskedLMScore | None
    task: TaskScore | None
    network: NetworkBenchmark
    curve: list[tuple[int, float]]
    confusion: Confusion | None = None


def measure_entries(
    entries: Mapping[str, Entry],
    masked_lm_data: TextDataModule,
    task_data: TextDataModule | None,
    benchmark: Mapping[str, Any],
    device: str,
) -> tuple[dict[str, EntryResult], Floors]:
    """Test every network on the test splits with the same masks, time them all, and compute the baselines.

    `benchmark` holds further arguments of `measure_networks`.
    """
    for data in filter(None, (masked_lm_data, task_data)):
        data.prepare_data()
        data.setup("test")
        for split in ("train", "test"):
            if split not in data.datasets:
                raise ValueError(f"data.source: it gives no {split} split, which the report needs")
    masked: dict[str, MaskedLMScore] = {}
    task: dict[str, tuple[TaskScore, Confusion | None]] = {}
    for key, entry in progress_bar(entries.items(), desc="testing", unit="network"):
        if entry.pretrained is not None:
            masked[key] = _test_masked_lm(f"{entry.pretrained}/export", masked_lm_data, device)
        if entry.finetuned is not None and task_data is not None:
            task[key] = _test_task(f"{entry.finetuned}/export", task_data, device)
    exports = [f"{entry.pretrained or entry.finetuned}/export" for entry in entries.values()]
    networks = measure_networks(exports, device=device, **benchmark)
    results = {
        key: EntryResult(entry.label, masked.get(key), score, network, _curve(entry.pretrained), confusion)
        for (key, entry), network in zip(entries.items(), networks, strict=True)
        for score, confusion in [task.get(key, (None, None))]
    }
    return results, _measure_floors(masked_lm_data, task_data)


def unigram_loss(token_counts: np.ndarray, labels: np.ndarray, *, vocabulary_size: int) -> float:
    """Cross-entropy in nats of `labels` under token frequencies with add-one smoothing.

    Args:
        token_counts: int64 `[at most vocabulary_size]`, how often each id occurs in the training corpus.
        labels: int64 `[M]`, the tokens to predict.
        vocabulary_size: Number of ids.
    """
    counts = np.ones(vocabulary_size)
    counts[: len(token_counts)] += token_counts
    return float(np.log(counts.sum()) - np.log(counts[labels]).mean())


def _test_masked_lm(export: str, data: TextDataModule, device: str) -> MaskedLMScore:
    data.check_same_vocabulary(export)
    values = _test(MaskedLMModule(Pretrained(export)), data, device)
    return MaskedLMScore(values["test/masked_lm_loss"], values["test/perplexity"], values["test/masked_accuracy"])


def _test_task(export: str, data: TextDataModule, device: str) -> tuple[TaskScore, Confusion | None]:
    _check_labels(export, data)
    module = FineTuningModule(Pretrained(export))
    values = _test(module, data, device)
    if "test/accuracy" not in values:
        raise ValueError(f"task_data.task: {type(data.task).__name__} has no accuracy; the report compares classifiers")
    accuracy = values["test/accuracy"]
    error = float(np.sqrt(accuracy * (1 - accuracy) / len(data.datasets["test"])))
    score = TaskScore(accuracy, error, values["test/macro_f1"], values["test/loss"])
    return score, confusion_of(module.task, module.predictions["test"], module.data.datasets["test"].rows)


def _test(module: MaskedLMModule | FineTuningModule, data: TextDataModule, device: str) -> dict[str, float]:
    quieten()
    trainer = Trainer(
        accelerator="gpu" if device.startswith("cuda") else device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # `latest` has the means in full precision, while Lightning logs float32
    trainer.test(module, datamodule=data, verbose=False)
    return {name: value for name, value in module.latest.items() if name.startswith("test/")}


def _measure_floors(masked_lm_data: TextDataModule, task_data: TextDataModule | None) -> Floors:
    """The baselines, on exactly the labels that the networks predict."""
    train = masked_lm_data.datasets["train"]
    if not isinstance(train, MaskedSequences):
        raise ValueError("masked_lm_data.format: the report measures masked language modelling, which needs documents")
    labels = _collect(masked_lm_data, "masked_labels")
    loss = unigram_loss(train.corpus.token_counts, labels, vocabulary_size=masked_lm_data.vocabulary.size)
    if task_data is None:
        return Floors(len(labels), loss, None, None)
    classes = _collect(task_data, "labels")
    majority = np.unique(classes, return_counts=True)[1].max() / len(classes)
    return Floors(len(labels), loss, len(classes), float(majority))


def _collect(data: TextDataModule, field: str) -> np.ndarray:
    """One field of every batch of the test split, concatenated."""
    values = [getattr(batch, field) for batch in EvalLoader(data.datasets["test"], batch_size=256)]
    if any(value is None for value in values):
        needed = "data.masking" if field == "masked_labels" else "labelled rows"
        raise ValueError(f"the report needs {needed} in the test split, and there is none")
    return np.concatenate([value.numpy() for value in values])


def _check_labels(export: str, data: TextDataModule) -> None:
    """Refuse a network with other classes or another order of classes, whose score would be wrong."""
    if data.task is None:
        raise ValueError("task_data.task: scoring fine-tuned networks needs one; give the task of their runs")
    settings = data.task.head_settings()
    ours = {str(index): str(name) for index, name in settings.get("id2label", {}).items()}
    theirs = json.loads(Path(export, "config.json").read_text(encoding="utf-8")).get("id2label", {})
    if ours and ours != theirs:
        raise ValueError(
            f"task_data.task: its classes {list(ours.values())} are not those that {export} was fine-tuned for "
            f"({list(theirs.values())}); give the source and the task of that run"
        )


def _curve(folder: str | None) -> list[tuple[int, float]]:
    """Validation loss by step; empty without metrics.csv, as for an export from elsewhere."""
    if folder is None or not Path(folder, "metrics.csv").is_file():
        return []
    metrics = read_metrics(folder)
    return sorted(metrics.get("val/masked_lm_loss", metrics.get("val/loss/masked_lm", {})).items())


# The results as tables, findings and notes


_GLUE = (79.5, 77.0)  # macro-scores of BERT base and DistilBERT: Sanh et al. 2019 (arXiv 1910.01108), table 1
_SOURCE = (
    "Published: Sanh et al. 2019, DistilBERT, table 1 (GLUE development sets) and table 3 (parameters; seconds for the "
    "development set of STS-B on a CPU at batch 1). Data, sizes and tasks are not the same here: compare the ratios, "
    "not the numbers."
)


@dataclass(frozen=True)
class Comparison:
    """Two entries to compare in the findings.

    Attributes:
        label: What is compared, such as `soft targets vs no teacher, equal steps`.
        a: Key of an entry.
        b: Key of the entry that is subtracted from `a`.
    """

    label: str
    a: str
    b: str


@dataclass(frozen=True)
class Results:
    """All results of a report's entries."""

    teacher: str
    entries: dict[str, EntryResult]
    floors: Floors
    comparisons: list[Comparison]
    settings: dict[str, int]
    hardware: dict[str, str | int | None]

    def share_kept(self, key: str) -> float | None:
        """Accuracy divided by the teacher's."""
        ours, theirs = self.entries[key].task, self.entries[self.teacher].task
        return None if ours is None or theirs is None or not theirs.accuracy else ours.accuracy / theirs.accuracy

    def loss_difference(self, a: str, b: str) -> float | None:
        """Masked-LM loss of `a` minus that of `b`, in nats; below 0 if `a` is better."""
        ours, theirs = self.entries[a].masked_lm, self.entries[b].masked_lm
        return None if ours is None or theirs is None else ours.loss - theirs.loss

    def accuracy_difference(self, a: str, b: str) -> tuple[float, float] | None:
        """Accuracy of `a` minus that of `b`, and its standard error as if their rows were independent."""
        ours, theirs = self.entries[a].task, self.entries[b].task
        if ours is None or theirs is None:
            return None
        return ours.accuracy - theirs.accuracy, (ours.accuracy_error**2 + theirs.accuracy_error**2) ** 0.5

    def sections(self, folder: Path) -> list[Section]:
        """The sections of the page; draws its pictures into `folder`."""
        first = [Section(table=main_table(self))]
        if self.comparisons:
            first.append(Section("Findings", lines=findings(self)))
        return [
            *first,
            Section(pictures=_draw(self, folder)),
            *_mistakes(self, folder),
            Section("More of each network", details_table(self)),
            Section(lines=notes(self), small=True),
            Section("Beside the published figures", published_table(self), [_SOURCE], small=True),
            Section("Measured on", lines=hardware_lines(self.hardware), small=True),
        ]

    def numbers(self) -> dict[str, Any]:
        """All results and what is derived from them, as plain values."""
        numbers = asdict(self)
        for key, entry in numbers["entries"].items():
            entry["share_of_teacher_accuracy"] = self.share_kept(key)
            entry["loss_difference_to_teacher"] = self.loss_difference(key, self.teacher)
            confusion = self.entries[key].confusion
            entry["confusion"] = None if confusion is None else confusion.to_plain()
        for comparison in numbers["comparisons"]:
            a, b = comparison["a"], comparison["b"]
            accuracy, error = self.accuracy_difference(a, b) or (None, None)
            comparison["loss_difference"] = self.loss_difference(a, b)
            comparison |= {"accuracy_difference": accuracy, "accuracy_difference_error": error}
        return {**numbers, "findings": findings(self)}


def main_table(results: Results) -> Table:
    """One row per entry, and one for the baselines without a network: quality, size and latency."""
    table = [["network", "MLM loss (nats)", "vs teacher", "accuracy %", "parameters", "latency ms"]]
    for key, entry in results.entries.items():
        difference = results.loss_difference(key, results.teacher)
        masked, task, network = entry.masked_lm, entry.task, entry.network
        table.append(
            [
                entry.label,
                f"{masked.loss:.3f}" if masked else "–",
                "–" if difference is None or key == results.teacher else signed(difference, 3),
                f"{100 * task.accuracy:.1f} ± {100 * task.accuracy_error:.1f}" if task else "–",
                f"{network.encoder_parameters:,}",
                f"{network.latency_ms.median:.2f}",
            ]
        )
    floors, teacher = results.floors, results.entries[results.teacher].masked_lm
    majority = "–" if floors.majority_accuracy is None else f"{100 * floors.majority_accuracy:.1f}"
    beyond = "–" if teacher is None else signed(floors.unigram_loss - teacher.loss, 3)
    floor = ["No network (token frequencies; commonest class)", f"{floors.unigram_loss:.3f}", beyond]
    table.append([*floor, majority, "–", "–"])
    return table


def details_table(results: Results) -> Table:
    """The other measurements of each entry."""
    table = [["network", "perplexity", "macro-F1 %", "accuracy kept %", "MB", "latency ms (quartiles)", "seq/s"]]
    for key, entry in results.entries.items():
        kept, masked, task, network = results.share_kept(key), entry.masked_lm, entry.task, entry.network
        table.append(
            [
                entry.label,
                f"{masked.perplexity:.1f}" if masked else "–",
                f"{100 * task.macro_f1:.1f}" if task else "–",
                "–" if kept is None else f"{100 * kept:.1f}",
                f"{network.size_mb:.1f}",
                str(network.latency_ms),
                f"{network.sequences_per_second:,.0f}",
            ]
        )
    return table


def published_table(results: Results) -> Table:
    """Our ratios to the teacher beside DistilBERT's ratios to BERT."""
    (bert_size, bert_time), (size, time) = DISTILBERT_TABLE_3["BERT-base"], DISTILBERT_TABLE_3["DistilBERT"]
    table = [
        ["student", "parameters", "time at batch 1", "score kept"],
        [
            "DistilBERT to BERT, published",
            f"{size / bert_size:.2f} ({bert_size} M → {size} M)",
            f"{time / bert_time:.2f} ({bert_time} s → {time} s)",
            f"{100 * _GLUE[1] / _GLUE[0]:.0f} % (GLUE {_GLUE[0]} → {_GLUE[1]})",
        ],
    ]
    teacher = results.entries[results.teacher]
    for key, entry in results.entries.items():
        if key == results.teacher or (entry.task is None and teacher.task is not None):
            continue
        kept = results.share_kept(key)
        before, after = teacher.network, entry.network
        sizes = (before.encoder_parameters, after.encoder_parameters)
        times = (before.latency_ms.median, after.latency_ms.median)
        table.append(
            [
                f"{entry.label}, measured here",
                f"{sizes[1] / sizes[0]:.2f} ({sizes[0]:,} → {sizes[1]:,})",
                f"{times[1] / times[0]:.2f} ({times[0]:.2f} ms → {times[1]:.2f} ms)",
                "–" if kept is None else f"{100 * kept:.0f} %",
            ]
        )
    return table


def findings(results: Results) -> list[str]:
    """One sentence per comparison: the differences, in either direction, and whether chance could explain them."""
    lines = []
    for comparison in results.comparisons:
        parts = []
        difference = results.loss_difference(comparison.a, comparison.b)
        if difference is not None:
            parts.append(f"the loss is {_higher_or_lower(difference, 2, ' nats')}")
        accuracies = results.accuracy_difference(comparison.a, comparison.b)
        if accuracies is not None:
            gain, error = (100 * value for value in accuracies)
            change = _higher_or_lower(gain, 1, " points")
            verdict = "beyond" if abs(gain) > 1.96 * error else "within"
            parts.append(f"accuracy is {change}, {verdict} chance (± {1.96 * error:.1f})")
        lines.append(f"{comparison.label}: {'; '.join(parts) if parts else 'not measured on the same data'}")
    return lines


def _higher_or_lower(value: float, digits: int, unit: str) -> str:
    size = f"{abs(value):.{digits}f}"
    return "the same" if float(size) == 0 else f"{size}{unit} {'higher' if value > 0 else 'lower'}"


def notes(results: Results) -> list[str]:
    """How to read the numbers."""
    floors, settings = results.floors, results.settings
    lines = [
        f"MLM loss: mean cross-entropy over the same {floors.num_masked:,} masked tokens of held-out documents. "
        "A difference below 0 means a lower loss."
    ]
    if floors.num_rows is not None:
        lines.append(
            f"accuracy: {floors.num_rows:,} test rows; ± is one standard error from their number, and does not include "
            "the variation between seeds. Chance is 1.96 standard errors of the difference. kept: accuracy over the "
            "teacher's."
        )
    lines.append(
        f"parameters, latency and seq/s: the encoder without its head in plain transformers, {settings['length']} "
        f"tokens a sequence, {settings['threads']} thread(s), float32; latency at batch 1, seq/s at batch "
        f"{settings['batch_size']}. MB: the exported weight files."
    )
    missing = [entry.label for entry in results.entries.values() if entry.masked_lm and not entry.curve]
    if missing:
        lines.append(f"no curve, because val/masked_lm_loss was not logged: {'; '.join(missing)}.")
    return lines


def _mistakes(results: Results, folder: Path) -> list[Section]:
    """What each fine-tuned network mistakes for what, on the test rows."""
    named = [(one.label, one.confusion) for one in results.entries.values() if one.task is not None]
    return confusion_sections("What is mistaken for what", named, folder / "test_confusion.png")


def _draw(results: Results, folder: Path) -> list[Path]:
    """Draw the curves of the runs that logged them, and quality against latency."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, floors, entries = [], results.floors, list(results.entries.values())
    curves = [(index, entry.label, entry.curve) for index, entry in enumerate(entries) if entry.curve]
    if curves:
        pictures.append(folder / "curves.png")
        plot_curves(pictures[-1], curves, floor=floors.unigram_loss)
    has_task = sum(entry.task is not None for entry in entries) >= 2
    points = []
    for index, entry in enumerate(entries):
        time = entry.network.latency_ms
        latency = (time.median, time.lower, time.upper)
        if has_task and entry.task:
            error = 100 * entry.task.accuracy_error
            points.append(Point(entry.label, index, latency, 100 * entry.task.accuracy, error))
        elif not has_task and entry.masked_lm:
            points.append(Point(entry.label, index, latency, entry.masked_lm.loss))
    if points:
        pictures.append(folder / "quality_latency.png")
        name, floor = "masked-LM loss (nats)", (floors.unigram_loss, "token frequencies alone (unigram)")
        if has_task and floors.majority_accuracy is not None:
            name, floor = "task accuracy (%)", (100 * floors.majority_accuracy, "commonest class")
        plot_quality(pictures[-1], points, quality=name, floor=floor)
    return pictures
