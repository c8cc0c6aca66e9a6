"""Sentence embeddings: one unit vector per sequence, and the losses that compare them.

How token states become one vector (the pooling) is a property of the network that sentence-transformers stores in files
beside it. This module reads and writes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import cached_file

from lit_distil.objectives.base import Objective, require_teacher
from lit_distil.objectives.capabilities import NetworkCapabilities, check_equal_widths
from lit_distil.objectives.functional import cosine_distance_sum, embedding_relation_kl, pool_sequences
from lit_distil.schedules import StepValue, extremes_of
from lit_distil.types import Batch, EncoderOutput

Pooling = Literal["mean", "cls"]
"""A sequence's vector is the mean of its token states, special tokens included, or the state of its first token."""

_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class SentenceFormat:
    """What a sentence-transformers folder says beside the network's own files.

    Attributes:
        pooling: How token states become one vector.
        max_length: Number of tokens at which a text is cut; None for as many as the network takes.
    """

    pooling: Pooling
    max_length: int | None = None

    def files(self, width: int) -> dict[str, Any]:
        """The files that `SentenceTransformer(folder)` reads, as JSON content by path, for hidden states of `width`.

        The class names are those of sentence-transformers 2 to 5, which later versions also read.
        """
        modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        return {
            "modules.json": [
                {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for number, (path, kind) in enumerate(modules)
            ],
            "sentence_bert_config.json": {"max_seq_length": self.max_length, "do_lower_case": False},
            "1_Pooling/config.json": {
                "word_embedding_dimension": width,
                "pooling_mode_cls_token": self.pooling == "cls",
                "pooling_mode_mean_tokens": self.pooling == "mean",
                "pooling_mode_max_tokens": False,
                "pooling_mode_mean_sqrt_len_tokens": False,
            },
            "2_Normalize/config.json": {},
        }

    def write(self, folder: Path, width: int) -> None:
        """Write `files` into a new folder."""
        for name, content in self.files(width).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_sentence_format(name_or_path: str, revision: str | None = None) -> SentenceFormat | None:
    """What a folder, or a name on the Hub, says about its sentence embeddings; None if it says nothing.

    Raises:
        ValueError: Its pooling is not supported, or it has a layer after the pooling.
    """
    pooling = _json_beside(name_or_path, "1_Pooling/config.json", revision)
    if pooling is None:
        return None
    # old folders have a flag for each pooling mode, new ones the name of the mode
    modes = [name for name, is_on in pooling.items() if name.startswith("pooling_mode_") and is_on]
    given = pooling.get("pooling_mode", [mode.removeprefix("pooling_mode_").removesuffix("_tokens") for mode in modes])
    names = [given] if isinstance(given, str) else list(given)
    names = ["cls" if name == "cls_token" else name for name in names]
    if len(names) != 1 or names[0] not in get_args(Pooling):
        raise ValueError(
            f"{name_or_path!r} pools its token states by {names}, and {' and '.join(get_args(Pooling))} are known here"
        )
    modules = _json_beside(name_or_path, "modules.json", revision) or []
    if others := [one.get("type") for one in modules if str(one.get("type")).rpartition(".")[2] not in _MODULES]:
        raise ValueError(
            f"{name_or_path!r} has {others[0]} among its modules, and its embeddings are more than pooled token states"
        )
    return SentenceFormat(names[0], read_max_length(name_or_path, revision))  # type: ignore[arg-type]


def read_max_length(name_or_path: str, revision: str | None = None) -> int | None:
    """The number of tokens at which a folder's sentence encoder cuts a text; None if it does not say."""
    return (_json_beside(name_or_path, "sentence_bert_config.json", revision) or {}).get("max_seq_length")


def _json_beside(name_or_path: str, file: str, revision: str | None) -> Any | None:
    """A JSON file beside a network; None if there is none or it cannot be fetched, an error if it is not JSON."""
    path: Any = Path(name_or_path, file)
    if not path.is_file():
        if Path(name_or_path).exists() or name_or_path.count("/") > 1:
            return None
        try:
            path = cached_file(name_or_path, file, revision=revision)
        except (OSError, ValueError):  # not there, or not a name on the Hub
            return None
    try:
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch the folder again") from error


class EmbeddingObjective(Objective):
    """A term on sentence embeddings: token states are pooled and compared by cosine, so vector lengths do not matter.

    Nothing needs to be masked. The sum is over sequences.

    Args:
        pooling: "mean" or "cls"; None takes what the teacher's folder says (`1_Pooling/config.json`, as
            sentence-transformers writes it). Student and teacher pool in the same way.
        weight: Factor of this term in the total loss.

    Attributes:
        format: The pooling and maximum length that the student's folder will state; known after `check`.
    """

    counts = "sequences"
    needs_teacher = True
    across_tokenizers = True

    def __init__(self, pooling: Pooling | None = None, *, weight: float | StepValue = 1.0) -> None:
        super().__init__(weight)
        if pooling is not None and pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be 'mean', 'cls' or null (as the teacher's folder says), got {pooling!r}")
        self.pooling = pooling
        self.format: SentenceFormat | None = None if pooling is None else SentenceFormat(pooling)

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
        """Also check that the pooling is given, or found beside the teacher."""
        super().check(student, teacher)
        assert teacher is not None
        if self.pooling is not None:
            length = read_max_length(teacher.name, teacher.revision) if teacher.name else None
            self.format = SentenceFormat(self.pooling, length)
            return
        try:
            self.format = read_sentence_format(teacher.name, teacher.revision) if teacher.name else None
        except ValueError as error:
            raise ValueError(f"pooling: {error}; set pooling to mean or cls to compare in another way") from error
        if self.format is None:
            raise ValueError(
                f"pooling: nothing beside the teacher ({teacher.name or 'a model in memory'}) says how it makes one "
                "vector of a text; set pooling to mean or cls"
            )

    def embeddings(self, output: EncoderOutput, batch: Batch) -> Tensor:
        """The pooled states `[S, width]`, not normalised, in float32 at least."""
        if self.format is None:
            raise ValueError(f"{type(self).__name__}: set pooling to mean or cls, or call check() first")
        begins = batch.cu_seq_lens if output.cu_seq_lens is None else output.cu_seq_lens
        return pool_sequences(output.last_hidden_state, begins, self.format.pooling)


class EmbeddingCosineLoss(EmbeddingObjective):
    """`Σ_sequences (1 − cos(e_s, e_t))` of the pooled token states: 0 to 2 for each sequence.

    For unit vectors this is half their squared distance: the loss of Reimers and Gurevych (2020, "Making Monolingual
    Sentence Embeddings Multilingual using Knowledge Distillation", equation 1) times half the width.
    """

    def check(self, student: NetworkCapabilities, teacher: NetworkCapabilities | None) -> None:
        """Also check that the widths are equal."""
        super().check(student, teacher)
        check_equal_widths(student, teacher, "EmbeddingRelationLoss, which compares similarities")

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """Return the cosine distances, summed over the sequences."""
        theirs = self.embeddings(require_teacher(self, teacher), batch)
        return cosine_distance_sum(self.embeddings(student, batch), theirs)


class EmbeddingRelationLoss(EmbeddingObjective):
    """`Σ_i KL(p_t(· | i) ‖ p_s(· | i))` with `p(j | i) = softmax_j(cos(e_i, e_j) / T)` over the other texts j ≠ i.

    The student may have another width than the teacher. The other texts are those of the same micro-batch on the same
    rank: with accumulation or more ranks a text is compared with fewer others, so unlike other terms this one depends
    on how a global batch is divided. Use large micro-batches. A text that is alone in its micro-batch adds 0. There is
    no factor T² (as in Hinton's soft targets), so the value is a divergence in nats.

    Args:
        temperature: T, above 0. Cosines lie close together, so values far below 1 are usual.
        pooling: See `EmbeddingObjective`.
        weight: Factor of this term in the total loss.
    """

    def __init__(
        self, temperature: float | StepValue = 0.05, *, pooling: Pooling | None = None, weight: float | StepValue = 1.0
    ) -> None:
        super().__init__(pooling, weight=weight)
        low, high = extremes_of(temperature)
        if not (low > 0 and high < 1e15):
            raise ValueError(f"temperature must be positive and below 1e15, got {low if low <= 0 else high}")
        self.temperature = self.scheduled("temperature", temperature)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> Tensor:
        """Return the divergences, summed over the sequences."""
        theirs = self.embeddings(require_teacher(self, teacher), batch)
        return embedding_relation_kl(self.embeddings(student, batch), theirs, self.temperature)


def unit_embeddings(states: Tensor, cu_seq_lens: Tensor, pooling: Pooling) -> Tensor:
    """Pool the token states `[T, width]` of S sequences into unit vectors, `[S, width]`."""
    with torch.autocast(states.device.type, enabled=False):
        return F.normalize(pool_sequences(states, cu_seq_lens, pooling), dim=-1)
