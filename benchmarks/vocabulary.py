"""The vocabulary pass beside full logits: time and memory of a distillation loss and its gradients.

    python benchmarks/vocabulary.py                      # 2,048 rows; time in turns, and gradients compared
    python benchmarks/vocabulary.py --rows 16384 --memory true

DistilBERT's loss (KL at T = 2 on all rows, cross-entropy on 15 % of them) for hidden states of width 768 and a
vocabulary of 30,522, in float32. "in full" is that loss in a few lines of PyTorch; "as DistilBERT's authors" first
copies the logits that count out of both networks' logits, as their code does. Memory is how much the peak of the
process grows, each way in a process of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor

from lit_distil.commands.benchmark.latency import peak_bytes
from lit_distil.objectives import MaskedLMLoss, RowTerm, SoftTargetLoss, VocabularyPass
from lit_distil.types import Projection

WIDTH, VOCABULARY, TEMPERATURE = 768, 30_522, 2.0


class Work:
    """Hidden states and heads of a student and a teacher, and the ways to a loss."""

    def __init__(self, rows: int) -> None:
        torch.manual_seed(0)
        self.rows, self.num_masked = rows, rows * 15 // 100
        self.features = torch.randn(rows, WIDTH, requires_grad=True)
        self.weight = (0.05 * torch.randn(VOCABULARY, WIDTH)).requires_grad_()
        self.bias = torch.zeros(VOCABULARY, requires_grad=True)
        self.teacher = Projection(
            torch.randn(rows, WIDTH), 0.05 * torch.randn(VOCABULARY, WIDTH), torch.zeros(VOCABULARY)
        )
        self.labels = torch.randint(0, VOCABULARY, (self.num_masked,))

    def logits(self) -> tuple[Tensor, Tensor]:
        """Student's and teacher's, in full."""
        student = F.linear(self.features, self.weight, self.bias)
        with torch.no_grad():
            return student, self.teacher.logits()

    def in_full(self) -> Tensor:
        """The loss in a few lines."""
        student, teacher = self.logits()
        soft = F.kl_div(F.log_softmax(student / TEMPERATURE, -1), F.softmax(teacher / TEMPERATURE, -1), reduction="sum")
        hard = F.cross_entropy(student[: self.num_masked], self.labels)
        return 5 * TEMPERATURE**2 * soft / self.rows + 2 * hard

    def as_the_authors(self) -> Tensor:
        """The loss on copies of the logits that count."""
        student, teacher = self.logits()
        mask = torch.ones(self.rows, 1, dtype=torch.bool).expand_as(student)
        chosen = torch.masked_select(student, mask).view(-1, VOCABULARY)
        theirs = torch.masked_select(teacher, mask).view(-1, VOCABULARY)
        soft = F.kl_div(
            F.log_softmax(chosen / TEMPERATURE, -1), F.softmax(theirs / TEMPERATURE, -1), reduction="batchmean"
        )
        labels = torch.full((self.rows,), -100)
        labels[: self.num_masked] = self.labels
        return 5 * TEMPERATURE**2 * soft + 2 * F.cross_entropy(student, labels)

    def one_pass(self) -> Tensor:
        """The loss as this package takes it."""
        terms = [
            RowTerm(SoftTargetLoss(TEMPERATURE, positions="all"), 5 / self.rows),
            RowTerm(MaskedLMLoss(), 2 / self.num_masked),
        ]
        work = VocabularyPass(terms, self.labels, {"teacher": self.teacher})
        return work(Projection(self.features, self.weight, self.bias))[0]

    def run(self, way: Callable[[], Tensor]) -> tuple[float, float, list[Tensor]]:
        """Seconds, loss and gradients of one way."""
        leaves = [self.features, self.weight, self.bias]
        start = perf_counter()
        loss = way()
        loss.backward()
        seconds = perf_counter() - start
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        for leaf in leaves:
            leaf.grad = None
        return seconds, loss.item(), gradients


def time_ways(rows: int, rounds: int) -> None:
    """Print seconds (median and quartiles) and how far the gradients are apart."""
    work = Work(rows)
    ways = {"in full": work.in_full, "as DistilBERT's authors": work.as_the_authors, "one pass": work.one_pass}
    _, loss, reference = work.run(work.in_full)
    _, ours, gradients = work.run(work.one_pass)
    apart = max(((a - b).norm() / b.norm()).item() for a, b in zip(gradients, reference, strict=True))
    del reference, gradients
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(work.run(way)[0])
    base = statistics.median(seconds["one pass"])
    print(f"{rows:,} rows, {torch.get_num_threads()} threads, {rounds} rounds in turns\n")
    print("| way | seconds (quartiles) | times one pass |\n| --- | ---: | ---: |")
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {middle / base:.1f} |")
    print(f"\nloss {loss:.6f} in full, {ours:.6f} in one pass; gradients apart by {apart:.1e} of their norm at most")


def measure_memory(rows: int, way: str) -> None:
    """Print by how many MB one way makes the peak of this process grow."""
    work = Work(rows)
    before = peak_bytes()
    getattr(work, way)().backward()
    print(f"{(peak_bytes() - before) / 1e6:.0f}")


def main(rows: int = 2048, rounds: int = 7, memory: bool = False, way: str | None = None) -> None:
    """Measure the ways to a distillation loss.

    Args:
        rows: Rows of hidden states.
        rounds: How often each way is timed.
        memory: Measure memory in place of time.
        way: Of this way only, in this process: in_full, as_the_authors or one_pass.
    """
    if way is not None:
        measure_memory(rows, way)
    elif memory:
        print(f"{rows:,} rows\n\n| way | MB more at the peak |\n| --- | ---: |")
        for each in ("in_full", "as_the_authors", "one_pass"):
            command = [sys.executable, __file__, "--rows", str(rows), "--way", each]
            done = subprocess.run(command, capture_output=True, text=True)
            print(f"| {each.replace('_', ' ')} | {done.stdout.strip() or 'out of memory'} |")
    else:
        time_ways(rows, rounds)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
