"""From a source's split to a data set: documents to masked sequences, labelled rows to encoded ones."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_distil.data.corpus.corpus import TokenCorpus, holds_corpus
from lit_distil.data.corpus.preparation import SHARD_CHARACTERS, prepare_corpus
from lit_distil.data.corpus.reading import DocumentFilters
from lit_distil.data.corpus.sequence_tables import open_table
from lit_distil.data.corpus.shards import CORPUS_VERSION
from lit_distil.data.formats import SequenceFormat
from lit_distil.data.masking import MaskingStrategy
from lit_distil.data.sequences import LabelledSequences, MaskedSequences
from lit_distil.data.sources.base import DocumentSource, RowSource, Split
from lit_distil.data.sources.prepared import PreparedCorpus
from lit_distil.data.tokenizers import tokenizer_hash, vocabulary_of
from lit_distil.files import default_cache_dir, hash_values
from lit_distil.tasks.base import Row, Task

STAND_INS: tuple[Split, ...] = ("predict", "test", "validation")
"""`predict` uses the first of these splits that exists."""


@dataclass(frozen=True)
class DocumentSplits:
    """Documents of a source as masked sequences, prepared once and then mapped.

    Attributes:
        source: Where documents come from, or a corpus that is already prepared.
        tokenizer: A fast tokenizer.
        format: How documents become sequences.
        masking: Which positions to predict; None masks nothing.
        max_length: Most tokens of a sequence.
        seed: Seed of the sequences and masks of the train split; the other splits use 0.
        cache_dir: Where corpora are kept; None is `$LIT_DISTIL_CACHE` or `~/.cache/lit_distil`.
        filters: Which documents to leave out; None keeps all.
        num_processes: How many processes tokenise; None is one for each core.
        verify: Whether to compare every file of a corpus with its sha256 before it is used.
    """

    source: DocumentSource
    tokenizer: PreTrainedTokenizerBase
    format: SequenceFormat
    masking: MaskingStrategy | None
    max_length: int
    seed: int
    cache_dir: str | None = None
    filters: DocumentFilters | None = None
    num_processes: int | None = None
    verify: bool = False

    def prepare(self, split: Split) -> None:
        """Write what is not in the cache yet, the corpus of a split and its sequences; called once on each node.

        Raises:
            ValueError: The train split has no documents, or the corpus cannot be prepared or fetched.
        """
        folder = self._folder(split, fetch=True)
        if folder is None:
            return
        if not holds_corpus(folder):
            rank_zero_info(f"tokenising the {split} split into {folder}")
            corpus = prepare_corpus(
                self.source, split, self.tokenizer, folder, filters=self.filters, num_processes=self.num_processes
            )
            if corpus is None and split == "train":
                raise ValueError("data.source: the train split has no documents; check the files and their content")
        if holds_corpus(folder):
            # makes the table of sequences and compiles the batching code, which the ranks then load
            self._sequences(split, TokenCorpus.load(folder, verify=self.verify))

    def open(self, split: Split) -> MaskedSequences | None:
        """The masked sequences of a prepared split; None if there is none."""
        folder = self._folder(split, fetch=False)
        if folder is None or not holds_corpus(folder):
            return None
        dataset = self._sequences(split, TokenCorpus.load(folder))
        rank_zero_info(f"{split}: {len(dataset):,} sequences, {dataset.corpus.num_tokens:,} tokens")
        return dataset

    def _sequences(self, split: Split, corpus: TokenCorpus) -> MaskedSequences:
        seed = self.seed if split == "train" else 0
        masking = copy.deepcopy(self.masking)  # each split binds its own token counts
        if masking is not None:
            masking.bind(corpus.token_counts)
        dataset = MaskedSequences(
            corpus,
            open_table(corpus, self.format, self.max_length, seed, cache_dir=default_cache_dir(self.cache_dir)),
            format=self.format,
            vocabulary=vocabulary_of(self.tokenizer),
            masking=masking,
            seed=seed,
        )
        dataset.compile()
        return dataset

    def _folder(self, split: Split, *, fetch: bool) -> Path | None:
        """Folder of the tokenised split, named after everything that it depends on; None if there is no such split."""
        tokenizer, cache_dir = tokenizer_hash(self.tokenizer), default_cache_dir(self.cache_dir)
        if isinstance(self.source, PreparedCorpus):
            return self.source.local_folder(split, tokenizer, cache_dir=cache_dir, fetch=fetch, verify=self.verify)
        filters = asdict(self.filters or DocumentFilters())
        key = [CORPUS_VERSION, self.source.fingerprint(split), tokenizer, SHARD_CHARACTERS, filters]
        return cache_dir / "corpora" / hash_values(key)[:24]


def open_rows(
    source: RowSource,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    splits: Iterable[Split],
    *,
    max_length: int,
    labelled: bool,
    max_eval_rows: int | None,
    validation_share: float,
    seed: int,
) -> dict[str, LabelledSequences]:
    """Read and encode splits, after the task has learnt its labels from the training rows.

    It needs no training rows if it only predicts and already knows its labels: a trained head brings them along.

    Args:
        source: Gives the rows.
        task: Encodes them.
        tokenizer: A fast tokenizer.
        splits: Which splits. If there are no rows to predict, `test` is opened instead, or else `validation`.
        max_length: Most tokens of a sequence, special tokens included.
        labelled: Whether labels are needed.
        max_eval_rows: Most rows of a split to evaluate on, evenly spread over it; None takes all.
        validation_share: Share of the training rows to hold out if the source has no validation split.
        seed: Decides which rows are held out.

    Returns:
        A data set for each split that has rows.

    Raises:
        ValueError: A row breaks the task's contract, or no row of a split can be used.
    """
    train: list[Row] = []
    if labelled or not task.knows_labels:
        train = list(source.rows("train"))
        task.learn_labels(train)
    rows: dict[str, list[Row]] = {}
    for split in splits:
        rows[split] = train if split == "train" else list(source.rows(split))
        for stand_in in STAND_INS[1:] if split == "predict" else ():
            if not any(rows.get(name) for name in STAND_INS):
                rows[stand_in] = list(source.rows(stand_in))
    if "validation" in rows and not rows["validation"] and validation_share:
        train = train or list(source.rows("train"))
        kept, held = hold_out(train, task, share=validation_share, seed=seed)
        rows["validation"] = [train[n] for n in held]
        if "train" in rows:
            rows["train"] = [train[n] for n in kept]
        if held:
            rank_zero_info(
                f"the source has no validation split; holding out {len(held):,} of {len(train):,} training rows "
                f"(data.validation_share {validation_share:g}, seed {seed}; 0 holds out none)"
            )
    datasets: dict[str, LabelledSequences] = {}
    for name, given in rows.items():
        if not given:
            continue
        chosen = np.arange(len(given))
        if name != "train" and max_eval_rows is not None and len(given) > max_eval_rows:
            chosen = np.arange(max_eval_rows, dtype=np.int64) * len(given) // max_eval_rows
        features = task.encode(
            [given[n] for n in chosen.tolist()],
            tokenizer,
            max_length=max_length,
            labelled=labelled,
            training=name == "train",
        )
        if not features:
            raise ValueError(f"data.source: none of the {len(given):,} rows of the {name} split can be used")
        features = [dataclasses.replace(sample, row=int(chosen[sample.row])) for sample in features]
        datasets[name] = LabelledSequences(features, given, label_kind=task.label_kind)
        windows = f" as {len(features):,} windows" if len(features) > len(chosen) else ""
        rank_zero_info(f"{name}: {len(chosen):,} rows{windows}, {int(datasets[name].lengths.sum()):,} tokens")
    return datasets


def hold_out(rows: list[Row], task: Task, *, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide rows into those to train on and those to validate on, as a function of rows, share and seed alone.

    Each stratum of the task (a class) gives its share, so that the total is as large as requested, and keeps at least
    one row to train on. Rows of a group (questions about one context) stay together.

    Args:
        rows: The training rows.
        task: Knows strata and groups.
        share: Share to hold out, between 0 and 1.
        seed: Decides which rows.

    Returns:
        Indices of the rows to train on and of those held out, each ascending.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)  # of each group
    for index, row in enumerate(rows):
        group = task.group(row)
        members[("row", index) if group is None else ("group", group)].append(index)
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    for together in members.values():
        strata[task.stratum(rows[together[0]])].append(together)

    sizes = np.array([sum(map(len, groups)) for groups in strata.values()], dtype=np.int64)
    quotas = np.floor(share * sizes).astype(np.int64)
    missing = round(share * len(rows)) - int(quotas.sum())
    by_remainder = np.argsort(quotas - share * sizes, kind="stable")  # the largest remainder first
    quotas[by_remainder[: max(missing, 0)]] += 1
    held: list[int] = []
    rng = np.random.default_rng([seed, len(rows)])
    for groups, size, quota in zip(strata.values(), sizes.tolist(), quotas.tolist(), strict=True):
        taken = 0
        for number in rng.permutation(len(groups)).tolist():
            if taken < quota and taken + len(groups[number]) < size:
                taken += len(groups[number])
                held += groups[number]
    if rows and not held:
        rank_zero_warn(
            f"data.validation_share: {share:g} of {len(rows):,} training rows is less than one row, so nothing is "
            "validated; raise it, or give validation rows (source.validation)"
        )
    is_held = set(held)
    return [n for n in range(len(rows)) if n not in is_held], sorted(held)
