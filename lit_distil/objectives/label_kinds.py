"""Kinds of labels: classes, values, label sets, choices and spans, one class for each.

A task names its kind (`Task.label_kind`), and everything else asks that object: the data for the labels of a batch, the
losses for their value, the modules for the mean of several teachers and the agreement with a teacher, the task for its
head, its metrics and the form of a prediction. A new kind is a subclass of `LabelKind`, in one file.
"""

# ruff: noqa: D102 - `LabelKind` documents the methods

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_distil.objectives.base import sum_of
from lit_distil.objectives.functional import logit_mse, soft_target_kl
from lit_distil.objectives.metrics import (
    Confusion,
    accuracy,
    confusion_matrix,
    f1_of_classes,
    f1_of_labels,
    macro_f1,
    matthews,
    pearson,
    sigmoid,
    softmax,
    spearman,
)
from lit_distil.objectives.vocabulary import mix_logits
from lit_distil.types import IGNORE_INDEX, Batch, Piece, refuse_result

_PADDING_LOGIT = -1e30
"""Gives probability 0 at any temperature; unlike infinities, two of them can be subtracted."""


def _tensor_of_labels(kind: LabelKind, tensor: Any, labels: list[Any], starts: list[int]) -> Tensor:
    if not isinstance(tensor, Tensor):
        refuse_result(kind, "to_tensor", "return the labels of a batch in one tensor", tensor)
    return tensor


def _rows_of_outcomes(kind: LabelKind, rows: Any, logits: Tensor, batch: Batch) -> list[Tensor]:
    if not isinstance(rows, list) or not all(isinstance(each, Tensor) and each.dim() == 2 for each in rows):
        refuse_result(kind, "softmax_rows", "return a list of tensors [items, outcomes]", rows)
    return rows


def _number_of_labels(kind: LabelKind, number: Any, labels: Tensor) -> int:
    if not isinstance(number, int) or number < 0:
        refuse_result(kind, "count", "return the number of labels as an int", repr(number))
    return number


class LabelKind(Piece, ABC):
    """One kind of labels.

    `to_tensor`, `loss`, `softmax_rows` and `from_softmax_rows` define a kind; the other methods have defaults.

    Attributes:
        name: Its name in YAML, for `kind:` of `TaskLoss` and `TaskSoftTargetLoss`.
        problem_type: Its name in the configuration of a sequence classification head, if it has one.
        batch_field: The field of `Batch` that holds the labels.
        per_token: Whether `Batch.labels` has an entry for each token.
        takes_class_weights: Whether `TaskLoss` may weight the classes.
        may_be_unknown: Whether a sample of labelled data may have the label None, which then counts as no item.
        distance_name: The name under which the student's distance from the teacher is logged.
    """

    name: ClassVar[str]
    problem_type: str | None = None
    batch_field = "labels"
    per_token = False
    takes_class_weights = False
    may_be_unknown = False
    distance_name = "kl_from_teacher"
    contracts = {
        "to_tensor": _tensor_of_labels,
        "loss": sum_of("loss"),
        "soft_target_loss": sum_of("soft_target_loss"),
        "softmax_rows": _rows_of_outcomes,
        "count": _number_of_labels,
    }

    @abstractmethod
    def to_tensor(self, labels: list[Any], starts: list[int]) -> Tensor:
        """The labels of a batch in one tensor.

        Args:
            labels: `Features.label` of each sample; None if it is unknown.
            starts: The position in the flat batch at which each sample begins.
        """

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch, class_weights: Tensor | None = None) -> Tensor:
        """The sum of the loss over the labels of a batch.

        Args:
            logits: The head's logits in float32.
            batch: The flat batch.
            class_weights: float32 `[K]`, only if the kind takes them.
        """

    def softmax_rows(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        """The head's logits as `[items, outcomes]`, one softmax per row, including items without a label.

        There is one tensor per part of a label: a span has two, for its first and last token. Soft targets and the mean
        of teachers use them; a kind without distributions overrides `soft_target_loss`, `num_agreeing` and `mix`.
        """
        raise ValueError(self._without_distributions())

    def from_softmax_rows(self, rows: list[Tensor], batch: Batch) -> Tensor:
        """The inverse of `softmax_rows`: logits in the shape that the head gives."""
        raise ValueError(self._without_distributions())

    def _without_distributions(self) -> str:
        return (
            f"{type(self).__name__} has no distributions to compare with a teacher's: define softmax_rows and "
            "from_softmax_rows, or override soft_target_loss, num_agreeing and mix"
        )

    def head_settings(self, names: list[str]) -> dict[str, Any]:
        """Settings for the head's Hugging Face configuration; `names` are the task's label names, if it has any."""
        return {"num_labels": len(names), "id2label": dict(enumerate(names))} if names else {}

    def count(self, labels: Tensor) -> int:
        """The number of labels in a tensor from `to_tensor`; the losses are divided by it."""
        return labels.numel()

    def split(self, logits: Tensor, batch: Batch) -> Sequence[Tensor]:
        """The logits of each sample of a batch."""
        return logits.unbind()

    def describe(self, output: Any, names: list[str]) -> dict[str, Any]:
        """The prediction for one sample, in readable form.

        Args:
            output: The sample's part of `split`, as a numpy array.
            names: The names of the task's labels; empty if they have none.
        """
        raise ValueError(f"{type(self).__name__} has no readable form; override the task's `readable`")

    def metrics(self, outputs: list[Any], labels: list[Any], names: list[str]) -> dict[str, float]:
        """The usual metrics of a dataset, by name; shares are fractions of 1.

        Args:
            outputs: The part of `split` of each sample, as a numpy array.
            labels: `Features.label` of each sample.
            names: The names of the task's labels; empty if they have none.
        """
        raise ValueError(f"{type(self).__name__} has no usual metrics; override the task's `score`")

    def confusion(self, outputs: list[Any], labels: list[Any], names: list[str]) -> Confusion | None:
        """What was predicted for the samples of each class; None if a sample does not have one class.

        The arguments are those of `metrics`.
        """
        return None

    def batch_fields(self, labels: list[Any], starts: list[int]) -> dict[str, Any]:
        """The fields of a `Batch` that hold its labels; the arguments are those of `to_tensor`."""
        tensor = self.to_tensor(labels, starts)
        return {self.batch_field: tensor, "num_labels": self.count(tensor)}

    def label_texts(self, batch: Batch, names: dict[int, str]) -> list[str | None]:
        """The label of each sequence in words, for `lit-distil inspect`; None where there is none to show.

        Args:
            batch: The batch, on the CPU.
            names: The names of the head's outputs.
        """
        if self.per_token or batch.labels is None:
            return [None] * batch.num_sequences
        return [self._text_of(label, names) for label in batch.labels.tolist()]

    def _text_of(self, label: Any, names: dict[int, str]) -> str:
        return str(label)

    def labels_in(self, batch: Batch) -> Tensor:
        """The labels of a batch; an error if it has none."""
        labels: Tensor | None = getattr(batch, self.batch_field)
        if labels is None:
            raise ValueError("the losses of a task are counted by its labels: they need data with labels")
        return labels

    def distributions(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        """`softmax_rows` for the labelled items only."""
        self.labels_in(batch)
        return self.softmax_rows(logits, batch)

    def num_correct(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """How many labelled items are predicted correctly, for the training accuracy; None to log none."""
        return None

    def soft_target_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch, temperature: float
    ) -> Tensor:
        """`T² · KL(teacher‖student)` at temperature T, averaged over the parts of a label, summed over labelled items.

        The teacher's logits have the same shape as the student's and get no gradient.
        """
        ours, theirs = (self.distributions(logits, batch) for logits in (student_logits, teacher_logits))
        parts = [soft_target_kl(s, t, temperature) for s, t in zip(ours, theirs, strict=True)]
        return torch.stack(parts).mean()

    def num_agreeing(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor | None:
        """For how many labelled items student and teacher predict the same; None if the kind has no such notion."""
        ours, theirs = (self.distributions(logits, batch) for logits in (student_logits, teacher_logits))
        same = [s.argmax(-1) == t.argmax(-1) for s, t in zip(ours, theirs, strict=True)]
        return torch.stack(same).all(0).sum()

    def mix(self, logits: list[Tensor], shares: list[float], batch: Batch, temperature: float) -> Tensor:
        """Logits of the weighted mean of several teachers' distributions, in the shape that the head gives.

        Args:
            logits: The logits of each teacher.
            shares: The share of each teacher, positive, with sum 1.
            batch: The flat batch; its labels are not used.
            temperature: The temperature at which the distributions are averaged.
        """
        by_teacher = [self.softmax_rows(each, batch) for each in logits]
        rows = [mix_logits(list(parts), shares, temperature) for parts in zip(*by_teacher, strict=True)]
        return self.from_softmax_rows(rows, batch)


class _OneOutcome(LabelKind):
    """A kind whose label is the correct one of a row's outcomes: cross-entropy."""

    def targets(self, batch: Batch) -> list[Tensor]:
        """int64 `[items]` for each tensor of `softmax_rows`: the correct outcome, or `IGNORE_INDEX`."""
        return [self.labels_in(batch).flatten()]

    def to_tensor(self, labels: list[Any], starts: list[int]) -> Tensor:
        return torch.tensor(labels, dtype=torch.int64)

    def count(self, labels: Tensor) -> int:
        return int((labels != IGNORE_INDEX).sum())

    def loss(self, logits: Tensor, batch: Batch, class_weights: Tensor | None = None) -> Tensor:
        settings: dict[str, Any] = {"weight": class_weights, "ignore_index": IGNORE_INDEX, "reduction": "sum"}
        pairs = zip(self.softmax_rows(logits, batch), self.targets(batch), strict=True)
        return torch.stack([F.cross_entropy(rows, targets, **settings) for rows, targets in pairs]).mean()

    def distributions(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        # labelled items first; the host knows their number, so nothing waits for the device
        is_other = (self.targets(batch)[0] == IGNORE_INDEX).to(torch.uint8)
        labelled = is_other.argsort(stable=True)[: batch.counts["labels"]]
        return [rows.index_select(0, labelled) for rows in self.softmax_rows(logits, batch)]

    def num_correct(self, logits: Tensor, batch: Batch) -> Tensor | None:
        (rows,), (targets,) = self.softmax_rows(logits, batch), self.targets(batch)
        return ((rows.argmax(-1) == targets) & (targets != IGNORE_INDEX)).sum()


class ClassLabel(_OneOutcome):
    """One of K classes for each text or each token: cross-entropy (BERT section 4).

    Logits `[S, K]` or `[T, K]`, labels int64 `[S]` or `[1, T]`.

    Args:
        per_token: Whether each token has a class; a sample's label is then an array.
    """

    name = "class"
    problem_type = "single_label_classification"
    takes_class_weights = True

    def __init__(self, *, per_token: bool = False) -> None:
        self.per_token = per_token

    def to_tensor(self, labels: list[Any], starts: list[int]) -> Tensor:
        return torch.from_numpy(np.concatenate(labels))[None] if self.per_token else super().to_tensor(labels, starts)

    def softmax_rows(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        return [logits]

    def from_softmax_rows(self, rows: list[Tensor], batch: Batch) -> Tensor:
        return rows[0]

    def split(self, logits: Tensor, batch: Batch) -> Sequence[Tensor]:
        return logits.split(batch.lengths) if self.per_token else logits.unbind()

    def _text_of(self, label: Any, names: dict[int, str]) -> str:
        return names.get(label, str(label))

    def describe(self, output: Any, names: list[str]) -> dict[str, Any]:
        probabilities = dict(zip(names, softmax(output).tolist(), strict=True))
        return {"label": names[int(np.argmax(output))], "probabilities": probabilities}

    def confusion(self, outputs: list[Any], labels: list[Any], names: list[str]) -> Confusion:
        """See the base class."""
        predicted = [int(np.argmax(output)) for output in outputs]
        return Confusion(names, confusion_matrix(predicted, labels, len(names)))

    def metrics(self, outputs: list[Any], labels: list[Any], names: list[str]) -> dict[str, float]:
        """Accuracy, macro-F1, Matthews correlation, and, for two classes, F1 of the second."""
        confusion = self.confusion(outputs, labels, names).counts
        values = {"accuracy": accuracy(confusion), "macro_f1": macro_f1(confusion), "matthews": matthews(confusion)}
        if len(names) == 2:
            values["f1"] = float(np.nan_to_num(f1_of_classes(confusion)[1]))
        return values


class ChoiceLabel(_OneOutcome):
    """The correct one of each sample's choices, whose number may differ: cross-entropy over the choices.

    Logits `[S, 1]`, a score for each choice; labels int64 `[G]` for the G groups of `Batch.group_sizes`.
    """

    name = "choice"

    def softmax_rows(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        return [side_by_side(logits.float().squeeze(-1), _group_sizes(batch))]

    def from_softmax_rows(self, rows: list[Tensor], batch: Batch) -> Tensor:
        return _end_to_end(rows, _group_sizes(batch))

    def split(self, logits: Tensor, batch: Batch) -> Sequence[Tensor]:
        return logits.squeeze(-1).split(_group_sizes(batch))

    def label_texts(self, batch: Batch, names: dict[int, str]) -> list[str | None]:
        sizes = _group_sizes(batch)
        right = [None] * len(sizes) if batch.labels is None else batch.labels.tolist()
        return [
            f"choice {choice + 1} of {size}{', the right one' if choice == answer else ''}"
            for size, answer in zip(sizes, right, strict=True)
            for choice in range(size)
        ]

    def describe(self, output: Any, names: list[str]) -> dict[str, Any]:
        return {"label": int(np.argmax(output)), "probabilities": softmax(output).tolist()}

    def metrics(self, outputs: list[Any], labels: list[Any], names: list[str]) -> dict[str, float]:
        """Accuracy."""
        num_right = sum(int(np.argmax(output)) == label for output, label in zip(outputs, labels, strict=True))
        return {"accuracy": num_right / max(len(outputs), 1)}


class SpanLabel(_OneOutcome):
    """A span in each sequence: half the cross-entropy of its first token plus half that of its last.

    Logits `[T, 2]`; labels int64 `[S, 2]`, first and last position in the flat batch (`Batch.answer_spans`). A sample's
    label is a pair of positions within it, or None if its span is unknown.
    """

    name = "span"
    batch_field = "answer_spans"
    may_be_unknown = True

    def head_settings(self, names: list[str]) -> dict[str, Any]:
        return {"num_labels": 2}

    def to_tensor(self, labels: list[Any], starts: list[int]) -> Tensor:
        unknown = (IGNORE_INDEX, IGNORE_INDEX)
        spans = [
            unknown if span is None else (start + span[0], start + span[1])
            for span, start in zip(labels, starts, strict=True)
        ]
        return torch.tensor(spans, dtype=torch.int64)

    def count(self, labels: Tensor) -> int:
        return super().count(labels[:, 0])

    def targets(self, batch: Batch) -> list[Tensor]:
        spans = self.labels_in(batch)
        within = torch.where(spans == IGNORE_INDEX, spans, spans - batch.first_positions[:, None])
        return list(within.unbind(1))

    def softmax_rows(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        return [side_by_side(scores.float(), batch.lengths) for scores in logits.unbind(-1)]

    def from_softmax_rows(self, rows: list[Tensor], batch: Batch) -> Tensor:
        return _end_to_end(rows, batch.lengths)

    def split(self, logits: Tensor, batch: Batch) -> Sequence[Tensor]:
        return logits.split(batch.lengths)

    def num_correct(self, logits: Tensor, batch: Batch) -> Tensor | None:
        return None


class MultiLabel(LabelKind):
    """Any number of K labels for each text, each decided independently: binary cross-entropy.

    Logits `[S, K]`; labels float32 `[S, K]`, zeros and ones, each of which counts as an item. For a logit z, the
    softmax over z and 0 gives the probability of the label.

    Args:
        threshold: The lowest probability at which a text gets a label.
    """

    name = "labels"
    problem_type = "multi_label_classification"

    def __init__(self, threshold: float = 0.5) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"task.threshold must lie between 0 and 1, got {threshold}")
        self.threshold = threshold

    def to_tensor(self, labels: list[Any], starts: list[int]) -> Tensor:
        return torch.from_numpy(np.stack(labels))

    def loss(self, logits: Tensor, batch: Batch, class_weights: Tensor | None = None) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, self.labels_in(batch).float(), reduction="sum")

    def softmax_rows(self, logits: Tensor, batch: Batch) -> list[Tensor]:
        return [torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, 1)]

    def from_softmax_rows(self, rows: list[Tensor], batch: Batch) -> Tensor:
        return (rows[0][:, 0] - rows[0][:, 1]).view(batch.num_sequences, -1)

    def _text_of(self, label: Any, names: dict[int, str]) -> str:
        return ", ".join(names.get(n, str(n)) for n, holds in enumerate(label) if holds) or "(none of the labels)"

    def describe(self, output: Any, names: list[str]) -> dict[str, Any]:
        given = [name for name, is_given in zip(names, self._is_given(output), strict=True) if is_given]
        return {"labels": given, "probabilities": dict(zip(names, sigmoid(output).tolist(), strict=True))}

    def metrics(self, outputs: list[Any], labels: list[Any], names: list[str]) -> dict[str, float]:
        """Micro-F1, macro-F1, the share of texts with all labels correct, and F1 of each label."""
        shape = (len(outputs), len(names))
        predicted = np.array([self._is_given(output) for output in outputs], dtype=bool).reshape(shape)
        right = np.array(labels, dtype=bool).reshape(shape)
        micro, each = f1_of_labels(predicted, right)
        return {
            "micro_f1": micro,
            "macro_f1": float(each.mean()),
            "exact_match": float((predicted == right).all(1).mean()) if outputs else 0.0,
            **{f"f1/{name}": float(value) for name, value in zip(names, each, strict=True)},
        }

    def _is_given(self, output: Any) -> np.ndarray:
        return sigmoid(output) >= self.threshold


class ValueLabel(LabelKind):
    """A number for each text: squared error. Logits `[S, 1]`, labels float32 `[S]`; a temperature has no effect."""

    name = "value"
    problem_type = "regression"
    distance_name = "squared_distance_from_teacher"

    def head_settings(self, names: list[str]) -> dict[str, Any]:
        return {"num_labels": 1}

    def to_tensor(self, labels: list[Any], starts: list[int]) -> Tensor:
        return torch.tensor(labels, dtype=torch.float32)

    def loss(self, logits: Tensor, batch: Batch, class_weights: Tensor | None = None) -> Tensor:
        return F.mse_loss(logits.squeeze(-1), self.labels_in(batch).float(), reduction="sum")

    def _text_of(self, label: Any, names: dict[int, str]) -> str:
        return f"{label:g}"

    def soft_target_loss(
        self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch, temperature: float
    ) -> Tensor:
        """The sum of squared differences."""
        self.labels_in(batch)
        return logit_mse(student_logits, teacher_logits)

    def num_agreeing(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor | None:
        return None

    def mix(self, logits: list[Tensor], shares: list[float], batch: Batch, temperature: float) -> Tensor:
        """The weighted mean of the values."""
        return torch.stack([share * each.float() for share, each in zip(shares, logits, strict=True)]).sum(0)

    def describe(self, output: Any, names: list[str]) -> dict[str, Any]:
        return {"value": float(output[0])}

    def metrics(self, outputs: list[Any], labels: list[Any], names: list[str]) -> dict[str, float]:
        """Pearson and Spearman correlation, and the mean squared error."""
        values = np.array([output[0] for output in outputs], dtype=np.float64)
        right = np.array(labels, dtype=np.float64)
        squared_error = float(np.mean((values - right) ** 2)) if outputs else 0.0
        return {"pearson": pearson(values, right), "spearman": spearman(values, right), "mse": squared_error}


_BY_NAME: dict[str, type[LabelKind]] = {
    kind.name: kind for kind in (ClassLabel, ValueLabel, MultiLabel, ChoiceLabel, SpanLabel)
}


def label_kind(kind: str | LabelKind) -> LabelKind:
    """The kind of labels with this name; an object is returned as it is."""
    if isinstance(kind, LabelKind):
        return kind
    if kind not in _BY_NAME:
        raise ValueError(
            f"kind: there is no kind of labels {kind!r}; take one of {list(_BY_NAME)}, or give a subclass of "
            "lit_distil.objectives.LabelKind"
        )
    return _BY_NAME[kind]()


def side_by_side(scores: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Lay out `[N]`, groups end to end, as `[G, largest]`; padding has probability 0."""
    return pad_sequence(scores.split(sizes), batch_first=True, padding_value=_PADDING_LOGIT)


def _end_to_end(rows: list[Tensor], sizes: tuple[int, ...]) -> Tensor:
    """The inverse of `side_by_side`, for each part: `[N, parts]`."""
    flat = [torch.cat([row[:size] for row, size in zip(part, sizes, strict=True)]) for part in rows]
    return torch.stack(flat, dim=-1)


def _group_sizes(batch: Batch) -> tuple[int, ...]:
    if batch.group_sizes is None:
        raise ValueError("the batch has no groups of choices; the task is lit_distil.tasks.MultipleChoice")
    return batch.group_sizes
