"""`lit-distil embeddings`: compare the quality of sentence encoders.

Similarity of pairs (STS: Spearman's correlation of cosines with human scores), retrieval (question to paragraph:
nDCG@10 and MRR@10), and how far each encoder agrees with the first one, its teacher.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lit_distil.commands.networks import name_list, open_network, sentence_format_of, short_names
from lit_distil.commands.pages import check_pages, write_report
from lit_distil.console import markdown_table, progress_bar
from lit_distil.data import SquadFiles, load_tokenizer
from lit_distil.data.sources.tables import read_rows
from lit_distil.messages import check_at_least
from lit_distil.models.exported import EXPORTED, ExportedNetwork, open_exported
from lit_distil.models.positions import position_range
from lit_distil.objectives.embedding import SentenceFormat, unit_embeddings
from lit_distil.objectives.metrics import spearman
from lit_distil.pieces import call_command
from lit_distil.tasks.base import SOURCE_KEY, place_of

Floats = NDArray[np.float64]
_CUTOFF = 10
_HEADLINE = "# Sentence embeddings"


def embeddings(
    model: list[str] | str,
    pairs: str | None = None,
    columns: list[str] | None = None,
    questions: str | None = None,
    pooling: str | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    out: str | None = None,
    overwrite: bool = False,
) -> None:
    """Compare sentence encoders: similarity of pairs, retrieval, and agreement with the first of them.

    Args:
        model: Exported folder, Hub name, checkpoint or file of `export` (ONNX, or OpenVINO's .xml); several as
            [runs/minilm,runs/sentence-encoder/export], the teacher first.
        pairs: Table (JSONL, CSV, Parquet, ...) of two texts and how similar they are, such as STS-B's test split.
        columns: Columns of both texts and the score; by default [sentence1, sentence2, label].
        questions: File in SQuAD's format. Each question must find its paragraph among all those in the file.
        pooling: mean or cls; None takes the folder's setting (1_Pooling/config.json).
        batch_size: Texts in a batch; changes the speed, not the embeddings.
        device: Where to run, such as cpu or cuda.
        out: Folder to write embeddings.md and embeddings.json to; None only prints.
        overwrite: Replace files of these names even if this command did not write them; its own may always be replaced.
    """
    names = name_list(model)
    if out is not None:
        check_pages(Path(out, "embeddings.md"), [".json"], overwrite=overwrite, mark=_HEADLINE)
    if pairs is None and questions is None:
        raise ValueError("pairs: give pairs with scores (--pairs FILE), questions (--questions FILE), or both")
    scored = None if pairs is None else read_scored_pairs(pairs, columns or ["sentence1", "sentence2", "label"])
    searched = None if questions is None else read_questions(questions)
    results: list[EncoderResult] = []
    cosines: list[Floats] = []
    for name in names:
        encoder = open_encoder(name, pooling=pooling, batch_size=batch_size, device=device)
        result, found = evaluate(encoder, scored, searched, reference=cosines[0] if cosines else None)
        results.append(result)
        cosines.append(found)
    report = _report(short_names(names), results)
    print(report)
    if out is not None:
        numbers = {name: asdict(result) for name, result in zip(names, results, strict=True)}
        write_report(Path(out, "embeddings"), f"{_HEADLINE}\n\n{report}\n", numbers)
        print(f"written: {Path(out, 'embeddings.md')}")


run = functools.partial(call_command, embeddings)


@dataclass(frozen=True)
class SentenceEncoder:
    """A network in eval mode that embeds texts as unit vectors, in padded batches sorted by length."""

    network: Any
    tokenizer: PreTrainedTokenizerBase
    format: SentenceFormat
    max_length: int
    num_parameters: int
    batch_size: int = 64

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """`[texts, width]`, each of length 1; texts are truncated to `max_length` tokens."""
        is_file = isinstance(self.network, ExportedNetwork)
        device = "cpu" if is_file else next(self.network.parameters()).device
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length, verbose=False)
        order = sorted(range(len(texts)), key=lambda number: -len(encoded["input_ids"][number]))
        parts = []
        starts = range(0, len(texts), self.batch_size)
        for start in progress_bar(starts, desc="encoding", unit="batch", leave=False):
            chosen = order[start : start + self.batch_size]
            rows = {name: [values[number] for number in chosen] for name, values in encoded.items()}
            inputs = self.tokenizer.pad(rows, return_tensors="pt", padding_side="right").to(device)
            if is_file:
                parts.append(self.network(**inputs)[1])
                continue
            states = self.network(**inputs).last_hidden_state
            mask = inputs["attention_mask"].bool()
            cu_seq_lens = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
            parts.append(unit_embeddings(states[mask], cu_seq_lens, self.format.pooling).cpu())
        found = torch.cat(parts)
        return torch.empty_like(found).index_copy_(0, torch.tensor(order), found)


def open_encoder(
    name: str, *, pooling: str | None = None, batch_size: int = 64, device: str = "cpu"
) -> SentenceEncoder:
    """Load a sentence encoder, without its head if it has one, from whatever `open_network` takes.

    It may also be a file of `export`, which pools by itself; the tokenizer comes from its folder.

    Raises:
        ValueError: It cannot be loaded, or its pooling is unknown.
    """
    check_at_least(1, {"batch_size": batch_size})
    network: Any
    if Path(name).suffix in EXPORTED:
        network, folder = open_exported(name, threads=torch.get_num_threads()), str(Path(name).parent)
        if "sentence_embedding" not in network.outputs:
            raise ValueError(
                f"model: {name!r} gives no embeddings; export the encoder again with --pooling mean or cls"
            )
        tokenizer, sentences = load_tokenizer(folder), sentence_format_of(folder)
        if sentences is not None and pooling not in (None, sentences.pooling):
            raise ValueError(
                f"pooling: {name!r} was exported with {sentences.pooling}, got {pooling!r}; export it again"
            )
        room, size = network.properties["max_length"] or None, network.properties["encoder_parameters"]
    else:
        model, tokenizer = open_network(name, field="model")
        sentences = sentence_format_of(name, pooling)
        network = nn.Module.to(model.base_model.eval(), device)
        room, size = position_range(model)[1], sum(parameter.numel() for parameter in network.parameters())
    if sentences is None:
        raise ValueError(f"pooling: nothing says how {name!r} makes one vector of a text; give --pooling mean or cls")
    limits = [room, tokenizer.model_max_length, sentences.max_length]
    longest = min(int(limit) for limit in (*limits, 1_000_000) if limit is not None)
    return SentenceEncoder(network, tokenizer, sentences, longest, size, batch_size)


# Evaluation data


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of texts, with human similarity scores."""

    left: list[str]
    right: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Questions:
    """Questions, paragraphs, and for each question the index of its paragraph."""

    questions: list[str]
    paragraphs: list[str]
    answers: list[int]


def read_scored_pairs(file: str, columns: Sequence[str]) -> ScoredPairs:
    """Read a table of two texts and a score.

    Raises:
        ValueError: The file is missing, all its scores are the same, or a row lacks a text or a number.
    """
    if len(columns) != 3:
        raise ValueError(f"columns: give those of both texts and of the score, three in all, got {list(columns)}")
    if not Path(file).is_file():
        raise ValueError(f"pairs: no file at {file!r}; give a table of two texts and a score (JSONL, CSV, ...)")
    found = ScoredPairs([], [], [])
    for row in read_rows(Path(file)):
        left, right, score = (row.get(column) for column in columns)
        if not (isinstance(left, str) and isinstance(right, str) and left.strip() and right.strip()):
            found_columns = sorted(name for name in row if name != SOURCE_KEY)
            raise ValueError(
                f"columns: {place_of(row)}: no text in {columns[0]!r} or {columns[1]!r}; there are {found_columns}"
            )
        try:
            number = float(score)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ValueError(f"columns: {place_of(row)}: {columns[2]!r} is no number, got {score!r}") from error
        if not math.isfinite(number):
            raise ValueError(f"columns: {place_of(row)}: {columns[2]!r} must be finite, got {score!r}")
        found.left.append(left)
        found.right.append(right)
        found.scores.append(number)
    if len(set(found.scores)) < 2:
        raise ValueError(f"pairs: {file!r} has {len(found.scores)} rows, all of one score, so nothing can be ranked")
    return found


def read_questions(file: str) -> Questions:
    """Read a file in SQuAD's format; a paragraph with several questions is kept once."""
    if not Path(file).is_file():
        raise ValueError(f"questions: no file at {file!r}; give one in SQuAD's format")
    numbers: dict[str, int] = {}
    asked, answers = [], []
    for row in SquadFiles(test=file).rows("test"):
        asked.append(str(row["question"]))
        answers.append(numbers.setdefault(str(row["context"]), len(numbers)))
    if len(numbers) < 2:
        raise ValueError(f"questions: {file!r} has {len(numbers)} paragraphs, and a choice needs two at least")
    return Questions(asked, list(numbers), answers)


# Evaluation


@dataclass(frozen=True)
class EncoderResult:
    """The results of one encoder; None for what was not measured.

    Attributes:
        parameters: Of the encoder.
        spearman: Spearman's correlation of the pairs' cosines with their scores.
        ndcg: Mean over the questions of `1 / log2(1 + rank)` of their paragraph, 0 beyond rank 10.
        mrr: The same for `1 / rank`.
        first: Share of the questions whose paragraph ranks first.
        agreement: Spearman's correlation of all cosines (of pairs, and of questions with paragraphs) with the first
            encoder's.
        texts_per_second: Including tokenisation.
    """

    parameters: int
    spearman: float | None = None
    ndcg: float | None = None
    mrr: float | None = None
    first: float | None = None
    agreement: float | None = None
    texts_per_second: float = math.nan


def evaluate(
    encoder: SentenceEncoder, pairs: ScoredPairs | None, questions: Questions | None, *, reference: Floats | None = None
) -> tuple[EncoderResult, Floats]:
    """An encoder's results, and its cosines (pairs, then questions with paragraphs) in the order of `reference`."""
    found: dict[str, Any] = {}
    cosines: list[Floats] = []
    num_texts, start = 0, perf_counter()
    if pairs is not None:
        texts = [*pairs.left, *pairs.right]
        left, right = encoder(texts).double().chunk(2)
        cosines.append((left * right).sum(1).numpy())
        found["spearman"] = spearman(cosines[-1], pairs.scores)
        num_texts += len(texts)
    if questions is not None:
        texts = [*questions.questions, *questions.paragraphs]
        asked, paragraphs = encoder(texts).double().split([len(questions.questions), len(questions.paragraphs)])
        similarities = (asked @ paragraphs.T).numpy()
        found |= retrieval(similarities, questions.answers)
        cosines.append(similarities.ravel())
        num_texts += len(texts)
    seconds = perf_counter() - start
    together = np.concatenate(cosines)
    if reference is not None:
        found["agreement"] = spearman(together, reference)
    return EncoderResult(encoder.num_parameters, texts_per_second=num_texts / seconds, **found), together


def retrieval(similarities: Floats, answers: Sequence[int]) -> dict[str, float]:
    """Compute nDCG@10, MRR@10, and the share of questions whose paragraph ranks first.

    Each question has one right paragraph. In a tie it ranks last, so an encoder that finds everything equally similar
    scores nothing. `similarities` is `[questions, paragraphs]`; `answers` holds the index of each question's paragraph.
    """
    right = similarities[np.arange(len(answers)), answers]
    ranks = (similarities >= right[:, None]).sum(axis=1)
    is_found = ranks <= _CUTOFF
    return {
        "ndcg": float((is_found / np.log2(1 + ranks)).mean()),
        "mrr": float((is_found / ranks).mean()),
        "first": float((ranks == 1).mean()),
    }


def _report(names: Sequence[str], results: Sequence[EncoderResult]) -> str:
    columns = {
        "Spearman": "spearman",
        f"nDCG@{_CUTOFF}": "ndcg",
        f"MRR@{_CUTOFF}": "mrr",
        "first": "first",
        "agreement": "agreement",
    }
    measured = {title: key for title, key in columns.items() if any(getattr(one, key) is not None for one in results)}
    kept = [key for key in ("spearman", "ndcg") if key in measured.values() and len(results) > 1]
    titles = {"spearman": "Spearman kept %", "ndcg": "nDCG kept %"}
    table = [["network", "parameters", *measured, *(titles[key] for key in kept), "texts/s"]]
    for name, one in zip(names, results, strict=True):
        values = [getattr(one, key) for key in measured.values()]
        whole = [getattr(results[0], key) for key in kept]
        shares = [100 * getattr(one, key) / of if of > 0 else None for key, of in zip(kept, whole, strict=True)]
        table.append(
            [name, f"{one.parameters:,}"]
            + ["–" if value is None else f"{value:.4f}" for value in values]
            + ["–" if share is None else f"{share:.1f}" for share in shares]
            + [f"{one.texts_per_second:,.0f}"]
        )
    return markdown_table(table)
