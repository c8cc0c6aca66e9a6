"""One step of DistilBERT's distillation, BERT-base into 6 layers, beside the same step on padded Hugging Face models.

    python benchmarks/distillation.py                      # time in turns, on sequences of many lengths
    python benchmarks/distillation.py --even true          # all of one length
    python benchmarks/distillation.py --memory true

Both start from the same weights (random, of BERT-base's shape) and the same masked sequences, without dropout. The
losses are KL at T = 2 and the cosine on all real tokens, and cross-entropy on the masked ones; losses and gradient
norms are printed side by side. Forward and backward are timed, the optimizer is not. The padded step is that of
DistilBERT's authors: logits of both networks at every position, copies of those that count, losses on the copies.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from lit_distil.models import EveryOther, MaskedLMNetwork
from lit_distil.modules import FrozenTeacher
from lit_distil.objectives import HiddenCosineLoss, MaskedLMLoss, SoftTargetLoss
from lit_distil.objectives.terms import LossTerms
from lit_distil.types import Batch

TEMPERATURE, MASK_ID, MASKED_SHARE = 2.0, 103, 0.15


def make_batch(sequences: int, longest: int, even: bool) -> Batch:
    """Random sequences with 15 % of their tokens masked."""
    draw = np.random.default_rng(0)
    lengths = np.full(sequences, longest) if even else draw.integers(longest // 8, longest + 1, sequences)
    ids = draw.integers(1000, 30_000, lengths.sum())
    chosen = np.sort(draw.choice(len(ids), round(MASKED_SHARE * len(ids)), replace=False))
    inputs = ids.copy()
    inputs[chosen] = MASK_ID
    ends = np.cumsum(lengths)
    return Batch(
        input_ids=torch.from_numpy(inputs)[None],
        position_ids=torch.from_numpy(np.arange(len(ids)) - np.repeat(ends - lengths, lengths))[None],
        cu_seq_lens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        lengths=tuple(lengths.tolist()),
        sample_ids=torch.arange(sequences),
        masked_positions=torch.from_numpy(chosen),
        masked_labels=torch.from_numpy(ids[chosen]),
    )


def make_models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A teacher of BERT-base's shape and a student with every other of its layers."""
    torch.manual_seed(0)
    teacher = BertForMaskedLM(BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).eval()
    student, _ = EveryOther().build(teacher)
    with torch.no_grad():  # so that it is not too near its teacher
        for parameter in student.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return teacher, student


class Flat:
    """The step as this package takes it."""

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        self.teacher, self.student, self.batch = (
            FrozenTeacher(MaskedLMNetwork(teacher)),
            MaskedLMNetwork(student),
            batch,
        )
        objectives = {
            "soft": SoftTargetLoss(TEMPERATURE, positions="all", weight=5.0),
            "masked_lm": MaskedLMLoss(weight=2.0),
            "cosine": HiddenCosineLoss(weight=1.0),
        }
        self.terms = LossTerms(objectives, {"teacher": 1.0})

    def loss(self) -> Tensor:
        """The loss of the batch, with a graph."""
        rows = self.batch.masked_first
        teachers = {"teacher": self.teacher(self.batch, rows=rows, project=False)}
        student = self.student(self.batch, rows=rows, project=False)
        return self.terms.total(student, teachers, self.batch, self.batch.counts)[0]


class Padded:
    """The step of DistilBERT's authors, on stock Hugging Face models."""

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch) -> None:
        self.teacher, self.student = teacher, student
        lengths = torch.tensor(batch.lengths)
        self.mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        self.ids = torch.zeros(self.mask.shape, dtype=torch.int64)
        self.ids[self.mask] = batch.input_ids[0]
        labels = torch.full((batch.num_tokens,), -100)
        assert batch.masked_positions is not None and batch.masked_labels is not None
        labels[batch.masked_positions] = batch.masked_labels
        self.labels = torch.full(self.mask.shape, -100)
        self.labels[self.mask] = labels

    def loss(self) -> Tensor:
        """The loss of the batch, with a graph."""
        inputs = {"input_ids": self.ids, "attention_mask": self.mask.long(), "output_hidden_states": True}
        ours = self.student(**inputs)
        with torch.no_grad():
            theirs = self.teacher(**inputs)
        wide = self.mask[..., None].expand_as(ours.logits)
        size = ours.logits.shape[-1]
        student = torch.masked_select(ours.logits, wide).view(-1, size)
        teacher = torch.masked_select(theirs.logits, wide).view(-1, size)
        soft = F.kl_div(
            F.log_softmax(student / TEMPERATURE, -1), F.softmax(teacher / TEMPERATURE, -1), reduction="batchmean"
        )
        hard = F.cross_entropy(ours.logits.view(-1, size), self.labels.view(-1))
        hidden = [output.hidden_states[-1][self.mask] for output in (ours, theirs)]
        cosine = F.cosine_embedding_loss(*hidden, torch.ones(len(hidden[0])))
        return 5 * TEMPERATURE**2 * soft + 2 * hard + cosine


def run(way: Flat | Padded, student: PreTrainedModel) -> tuple[float, float, float]:
    """Seconds, loss and norm of the gradient of one step."""
    start = perf_counter()
    loss = way.loss()
    loss.backward()
    seconds = perf_counter() - start
    norm = torch.nn.utils.get_total_norm([p.grad for p in student.parameters() if p.grad is not None])
    student.zero_grad()
    return seconds, loss.item(), float(norm)


def main(
    sequences: int = 16,
    longest: int = 128,
    even: bool = False,
    rounds: int = 5,
    memory: bool = False,
    way: str | None = None,
) -> None:
    """Measure a step.

    Args:
        sequences: In the batch.
        longest: Tokens of the longest; the others are drawn evenly from an eighth of it on.
        even: Make all as long.
        rounds: How often each way is timed.
        memory: Measure memory in place of time.
        way: Of this way only, in this process: flat or padded.
    """
    if memory and way is None:
        print("| way | MB more at the peak |\n| --- | ---: |")
        for each in ("padded", "flat"):
            command = [sys.executable, __file__, "--memory", "true", "--way", each, "--sequences", str(sequences)]
            command += ["--longest", str(longest), "--even", str(even).lower()]
            done = subprocess.run(command, capture_output=True, text=True)
            print(f"| {each} | {done.stdout.strip() or 'out of memory'} |", flush=True)
        return
    teacher, student = make_models()
    batch = make_batch(sequences, longest, even)
    if memory:
        one = (Flat if way == "flat" else Padded)(teacher, student, batch)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run(one, student)
        print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:,.0f}")
        return
    import copy

    twins = copy.deepcopy((teacher, student))  # the flat way sets the attention of its models
    ways = {"padded": (Padded(*twins, batch), twins[1]), "flat": (Flat(teacher, student, batch), student)}
    results = {name: [run(*one)] for name, one in ways.items()}
    first = {name: values[0] for name, values in results.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, one in ways.items():
            seconds[name].append(run(*one)[0])
    padding = 1 - batch.num_tokens / (batch.num_sequences * max(batch.lengths))
    print(f"{batch.num_tokens:,} tokens in {sequences} sequences, {100 * padding:.0f} % padding when padded, ", end="")
    print(f"{torch.get_num_threads()} threads, {rounds} rounds in turns\n")
    print("| way | seconds (quartiles) | loss | gradient norm |\n| --- | ---: | ---: | ---: |")
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {first[name][1]:.5f} | {first[name][2]:.5f} |")
    ratio = statistics.median(a / b for a, b in zip(seconds["padded"], seconds["flat"], strict=True))
    print(f"\nthe padded step takes {ratio:.1f} times as long")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
