"""TextDataModule: the data module that pretraining, distillation and fine-tuning share."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_distil.data.batching import WORKER_TIMEOUT, EvalLoader, TrainLoader
from lit_distil.data.corpus.corpus import TokenCorpus, holds_corpus
from lit_distil.data.corpus.preparation import SHARD_CHARACTERS, prepare_corpus
from lit_distil.data.corpus.reading import DocumentFilters
from lit_distil.data.corpus.sequence_tables import open_table
from lit_distil.data.corpus.shards import CORPUS_VERSION, Manifest
from lit_distil.data.formats import LinePerSequence, SequenceFormat
from lit_distil.data.masking import MaskingStrategy, TokenMasking
from lit_distil.data.readings import SharedTexts, check_readable, check_same_units, read_rows_again
from lit_distil.data.sequences import LabelledSequences, MaskedSequences, SequenceDataset, SpreadSequences
from lit_distil.data.sources.base import SPLITS, DocumentSource, RowSource, Split
from lit_distil.data.sources.prepared import PreparedCorpus
from lit_distil.data.splits import STAND_INS, open_rows
from lit_distil.data.tokenizers import check_same_vocabulary, load_tokenizer, tokenizer_hash, vocabulary_of
from lit_distil.data.trimming import shared_entries
from lit_distil.files import check_writable, default_cache_dir, describe, hash_values, short_hash
from lit_distil.messages import check_at_least
from lit_distil.schedules import StepValue, extremes_of
from lit_distil.tasks import Task
from lit_distil.types import Vocabulary

_MOST_COMPARED = 100_000_000  # tokens; takes a second


class TextDataModule(LightningDataModule):
    """Text to flat batches.

    For pretraining and distillation, which read documents, give `format` and `masking`. For fine-tuning, which reads
    labelled rows, give `task`.

    Args:
        tokenizer: Folder or Hub name of the tokenizer, or a loaded one.
        source: Where documents or rows come from.
        format: How documents become sequences.
        masking: Which positions to predict.
        task: What the rows mean.
        max_length: Most tokens of a sequence, special tokens included.
        batch_size: Sequences in an optimizer step, over all ranks and accumulated micro-batches.
        eval_batch_size: Sequences in an evaluation batch of one rank.
        max_eval_sequences: Most sequences (or labelled rows) of a split to evaluate on, evenly spread over it; None
            evaluates on all.
        validation_share: Share of the labelled training rows to hold out, the same from each class, if the source has
            no validation rows; 0 holds out none.
        num_workers: Processes that make batches; 0 makes them in the training process.
        seed: Seed of order and masks; None takes the run's (`seed_everything`).
        tokenizer_revision: Commit, tag or branch of the tokenizer on the Hub.
        cache_dir: Where to keep tokenised corpora; None is `$LIT_DISTIL_CACHE` or `~/.cache/lit_distil`.
        batch_tokens: Tokens in an optimizer step, instead of `batch_size` sequences. This keeps steps comparable
            between formats (RoBERTa, section 4.2). A step differs from it by less than one sequence. With a class of
            `lit_distil.schedules` the batch grows over the steps: micro-batches grow too, since their number stays the
            same, and every epoch has as many steps as the first.
        length_window: Group sequences of similar length into steps, within windows of this many steps; None leaves the
            order random.
        filters: Which documents of a corpus to leave out; None keeps all.
        num_processes: Processes that tokenise a corpus that is not in the cache; None is one for each core.
        verify_corpus: Compare every file of a corpus with its sha256 before the run, which reads all of it. Otherwise
            only the sizes are compared.
        worker_timeout: Seconds to wait for a batch from the processes of `num_workers` before the run ends; 0 waits
            forever.
        pad_to_multiple_of: Networks pad the tokens of a micro-batch to a multiple of this, with sequences that do not
            count, so that kernels meet few shapes; 1 adds nothing. See "Few shapes" in the documentation. Evaluation
            uses 8 at most.
        eval_masking: Which positions to predict in evaluation, the same for all recipes unless you set it: None masks
            15 % of the tokens, all equally likely, 80/10/10; "as_training" uses `masking`. Without `masking` none are.
    """

    def __init__(
        self,
        tokenizer: str | PreTrainedTokenizerBase,
        source: DocumentSource | RowSource,
        *,
        format: SequenceFormat | None = None,
        masking: MaskingStrategy | None = None,
        task: Task | None = None,
        max_length: int = 512,
        batch_size: int = 256,
        eval_batch_size: int = 32,
        max_eval_sequences: int | None = None,
        validation_share: float = 0.1,
        num_workers: int = 0,
        seed: int | None = None,
        tokenizer_revision: str | None = None,
        cache_dir: str | None = None,
        batch_tokens: int | StepValue | None = None,
        length_window: int | None = None,
        filters: DocumentFilters | None = None,
        num_processes: int | None = None,
        verify_corpus: bool = False,
        worker_timeout: float = WORKER_TIMEOUT,
        pad_to_multiple_of: int = 8,
        eval_masking: MaskingStrategy | Literal["as_training"] | None = None,
    ) -> None:
        super().__init__()
        if (format is None) == (task is None):
            raise ValueError("data: give either format (pretraining, distillation) or task (fine-tuning), and not both")
        if task is None and not isinstance(source, DocumentSource):
            raise ValueError(f"data.source: {type(source).__name__} gives rows, and data.format needs documents")
        if task is not None and not isinstance(source, RowSource):
            raise ValueError(f"data.source: {type(source).__name__} gives documents, and data.task needs labelled rows")
        check_at_least(4, {"data.max_length": max_length})
        counts = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "max_eval_sequences": max_eval_sequences,
            "batch_tokens": int(extremes_of(batch_tokens)[0]) if isinstance(batch_tokens, StepValue) else batch_tokens,
            "num_processes": num_processes,
            "pad_to_multiple_of": pad_to_multiple_of,
        }
        check_at_least(1, {f"data.{name}": count for name, count in counts.items()})
        most = 32 * (os.cpu_count() or 1)
        if not 0 <= num_workers <= most:
            raise ValueError(
                f"data.num_workers must lie between 0 and {most}, 32 for each core of this machine, got {num_workers}"
            )
        if num_processes is not None and num_processes > most:
            raise ValueError(
                f"data.num_processes must be at most {most}, 32 for each core of this machine, got {num_processes}"
            )
        if not 0 <= validation_share < 1:
            raise ValueError(f"data.validation_share must be 0 or more and less than 1, got {validation_share}")
        if not 0 <= worker_timeout < math.inf:
            raise ValueError(f"data.worker_timeout must be 0 or more seconds, got {worker_timeout}")
        self.source, self.format, self.task = source, format, task
        self.masking, self.eval_masking = masking, eval_masking
        self.max_length, self.batch_size = max_length, batch_size
        self.batch_tokens, self.length_window = batch_tokens, length_window
        self.eval_batch_size, self.max_eval_sequences = eval_batch_size, max_eval_sequences
        self.validation_share, self.pad_to_multiple_of = validation_share, pad_to_multiple_of
        self.num_workers, self.worker_timeout, self.cache_dir = num_workers, worker_timeout, cache_dir
        self.filters, self.num_processes, self.verify_corpus = filters, num_processes, verify_corpus
        self.seed = seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self.datasets: dict[str, SequenceDataset] = {}
        self.allows_other_data = False
        """Whether a run may continue from a checkpoint with other training data or teachers (`--allow_changes`)."""
        self.readers: dict[str, PreTrainedTokenizerBase] = {}
        """By teacher: its tokenizer, if the teacher reads the same texts in its own tokens."""
        self._content: str | None = None
        self._tokenizer, self._tokenizer_revision = tokenizer, tokenizer_revision
        if pad_to_multiple_of > max(2 * (self.step_capacity + max_length), 8):
            raise ValueError(
                f"data.pad_to_multiple_of: {pad_to_multiple_of:,} tokens would be filler for the most part, because a "
                f"step has at most {self.step_capacity:,}; take less"
            )

    # Checks before work

    def check_before_work(self, command: str | None = None, *, has_tokenizer: bool = True) -> None:
        """Refuse files, a tokenizer and lengths that cannot work; no document is read.

        Args:
            command: The command that will run, `fit`, `validate`, ...; None takes the trainer's.
            has_tokenizer: Whether the tokenizer exists; if not, it is trained on the text first.

        Raises:
            ValueError: A file or the tokenizer is missing, or `max_length` leaves no room for text.
        """
        if self.format is not None:
            self.format.check_length(self.max_length)
        splits = self._splits(command)
        for split in splits:
            self.source.check(split)
        if has_tokenizer and isinstance(self.source, PreparedCorpus):
            for split in splits:
                self._corpus_folder(split, fetch=False)
        elif has_tokenizer:
            _ = self.tokenizer

    # Prepare: once on each node, before the ranks continue

    def prepare_data(self) -> None:
        """Download, read and tokenise whatever the running command needs and the cache lacks.

        Raises:
            ValueError: A check before work fails (also in the trainer's module), the train split has no documents, or a
                corpus cannot be prepared or fetched.
        """
        if self.task is None and not isinstance(self.source, PreparedCorpus):
            check_writable(default_cache_dir(self.cache_dir), "data.cache_dir")
        self.check_before_work()
        self._check_module()
        for split in self._splits():
            if self.task is None:
                self._prepare_documents(split)
            else:
                assert isinstance(self.source, RowSource)
                next(iter(self.source.rows(split)), None)  # a source that downloads rows does so here, once
        if self.task is None:
            self._warn_of_shared_documents()

    def _check_module(self) -> None:
        """Let the trainer's module compare its networks with the data, and find teachers with their own tokenizer."""
        check_module = getattr(self.trainer and self.trainer.lightning_module, "check_before_work", None)
        if check_module is not None:
            check_module(self)

    def _prepare_documents(self, split: Split) -> None:
        source, folder = self._shared_source(), None
        for tokenizer in (*self.readers.values(), self.tokenizer):
            folder = self._corpus_folder(split, fetch=True, tokenizer=tokenizer)
            if folder is None:
                return
            if not holds_corpus(folder):
                rank_zero_info(f"tokenising the {split} split into {folder}")
                corpus = prepare_corpus(
                    source, split, tokenizer, folder, filters=self.filters, num_processes=self.num_processes
                )
                if corpus is None and split == "train":
                    raise ValueError("data.source: the train split has no documents; check the files and their content")
                if corpus is None:
                    rank_zero_info(f"data.source: the {split} split has no documents, so there is no {split}")
        if folder is not None and holds_corpus(folder):  # the folder of the data's own tokenizer
            # makes the sequence table and compiles the batching code, which the ranks then load
            self._sequences(split, TokenCorpus.load(folder, verify=self.verify_corpus))

    def _warn_of_shared_documents(self) -> None:
        """Warn about documents that are both evaluated and trained on, if the corpus is small enough to compare."""
        folders = {split: self._corpus_folder(split, fetch=False) for split in self._splits()}
        corpora = {split: TokenCorpus.load(at) for split, at in folders.items() if at is not None and holds_corpus(at)}
        train = corpora.pop("train", None)
        if train is None or sum(corpus.num_tokens for corpus in (train, *corpora.values())) > _MOST_COMPARED:
            return
        ours = set(train.document_hashes()) if corpora else set()
        for split, corpus in corpora.items():
            theirs = list(corpus.document_hashes())
            shared = sum(map(ours.__contains__, theirs))
            if shared:
                rank_zero_warn(
                    f"data.source: {shared:,} of {len(theirs):,} documents of the {split} split are in the training "
                    "split too; the validation loss on them says little"
                )

    # Set up: in each rank

    def setup(self, stage: str) -> None:
        """Open the splits that the running command needs."""
        self._check_module()  # needed if another rank prepared the data
        missing = [split for split in self._splits() if split not in self.datasets]
        if self.task is None:
            for split in missing:
                self._open_documents(split)
        elif missing and not (missing == ["predict"] and "test" in self.datasets):  # test stands in for predict
            assert isinstance(self.source, RowSource)
            opened = open_rows(
                self.source,
                self.task,
                self.tokenizer,
                missing,
                max_length=self.max_length,
                labelled=self._command() != "predict",
                max_eval_rows=self.max_eval_sequences,
                validation_share=self.validation_share,
                seed=self.seed,
            )
            for name, reader in self.readers.items():
                for opened_split, dataset in opened.items():
                    is_train = opened_split == "train"
                    reading = read_rows_again(dataset, self.task, reader, max_length=self.max_length, training=is_train)
                    dataset.readings = {**dataset.readings, name: reading}
            self.datasets = {**opened, **self.datasets}
        if "train" in missing and "train" in self.datasets:
            self._content = _content_of(self.datasets["train"])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores: a hash of the training data."""
        return {} if self._content is None else {"train": self._content}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the training data with that of the checkpoint's run.

        Raises:
            ValueError: The data differs, although its settings are the same.
        """
        if not self.allows_other_data and self._content not in (None, state_dict.get("train", self._content)):
            raise ValueError(
                "data.source: the training data has changed since the checkpoint was written, so the run would not be "
                "continued but become another one; restore the data, begin anew in another folder, or with `fit` add "
                "--allow_changes"
            )

    def _open_documents(self, split: Split) -> None:
        folder = self._corpus_folder(split, fetch=False)
        if folder is None or not holds_corpus(folder):
            return
        dataset = self._sequences(split, TokenCorpus.load(folder))
        rank_zero_info(f"{split}: {len(dataset):,} sequences, {dataset.corpus.num_tokens:,} tokens")
        self.datasets[split] = dataset
        if split != "train" and self.max_eval_sequences is not None and len(dataset) > self.max_eval_sequences:
            self.datasets[split] = SpreadSequences(dataset, self.max_eval_sequences)

    def _sequences(self, split: Split, corpus: TokenCorpus) -> MaskedSequences:
        dataset = self._unread_sequences(split, corpus, self.vocabulary, self._masking(split))
        readings = {}
        for name, reader in self.readers.items():
            folder = self._corpus_folder(split, fetch=False, tokenizer=reader)
            assert folder is not None
            theirs = TokenCorpus.load(folder)
            check_same_units(corpus, theirs, name)
            readings[name] = self._unread_sequences(split, theirs, vocabulary_of(reader), None)
        dataset.readings = readings
        return dataset

    def _unread_sequences(
        self, split: Split, corpus: TokenCorpus, vocabulary: Vocabulary, masking: MaskingStrategy | None
    ) -> MaskedSequences:
        """The sequences in one tokenizer's tokens, without readings."""
        format = self._shared_format()
        assert format is not None
        seed = self.seed if split == "train" else 0
        masking = copy.deepcopy(masking)  # each split has its own token counts
        if masking is not None:
            masking.bind(corpus.token_counts)
            if split != "train" and masking.patterns is None:
                masking.patterns = 1  # evaluation uses only the masks of epoch 0; a cached teacher needs them
        dataset = MaskedSequences(
            corpus,
            open_table(corpus, format, self.max_length, seed, cache_dir=default_cache_dir(self.cache_dir)),
            format=format,
            vocabulary=vocabulary,
            masking=masking,
            seed=seed,
        )
        dataset.compile()
        return dataset

    def _masking(self, split: Split) -> MaskingStrategy | None:
        """The masking of a split; None if nothing is masked."""
        if split == "train" or self.masking is None or self.eval_masking == "as_training":
            return self.masking
        return self.eval_masking or TokenMasking()

    def _shared_source(self) -> DocumentSource:
        """The documents, reduced to the units in which every tokenizer that reads them finds tokens."""
        assert isinstance(self.source, DocumentSource)
        readers = [*self.readers.values()]
        return SharedTexts(self.source, [self.tokenizer, *readers]) if readers else self.source

    def _shared_format(self) -> SequenceFormat | None:
        """The format; with several tokenizers, the one that makes one sequence of each text."""
        return LinePerSequence(keep_rest=False) if self.readers else self.format

    def _corpus_folder(
        self, split: Split, *, fetch: bool, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Path | None:
        """Folder of the tokenised split, named by a hash of what it depends on; None if there is no such split."""
        tokens, cache_dir = tokenizer_hash(tokenizer or self.tokenizer), default_cache_dir(self.cache_dir)
        source = self._shared_source()
        if isinstance(source, PreparedCorpus):
            return source.local_folder(split, tokens, cache_dir=cache_dir, fetch=fetch, verify=self.verify_corpus)
        filters = dataclasses.asdict(self.filters or DocumentFilters())
        key = [CORPUS_VERSION, source.fingerprint(split), tokens, SHARD_CHARACTERS, filters]
        return cache_dir / "corpora" / hash_values(key)[:24]

    def _splits(self, command: str | None = None) -> list[Split]:
        """The splits that a command (None: the running one) needs; all of them if there is no trainer."""
        needed: dict[str | None, list[Split]] = {
            "fit": ["train", "validation"],
            "validate": ["validation"],
            "test": ["test"],
            "predict": ["predict"] if self.task is not None else ["test", "validation"],  # see `predict_split`
        }
        return needed.get(command or self._command(), list(SPLITS))

    def _command(self) -> str | None:
        """`fit`, `validate`, `test` or `predict`; None if there is no trainer, or it is idle."""
        function = None if self.trainer is None else self.trainer.state.fn
        return None if function is None else str(getattr(function, "value", function))

    # Loaders

    def train_dataloader(self) -> TrainLoader:
        """Batches from the trainer's current step on."""
        trainer = self.trainer
        assert trainer is not None
        loader = TrainLoader(
            self._dataset("train"),
            batch_size=self.batch_size,
            accumulate=trainer.accumulate_grad_batches,
            seed=self.seed,
            first_step=lambda: trainer.global_step,
            batch_tokens=self.batch_tokens,
            length_window=self.length_window,
            pad_to_multiple_of=self.pad_to_multiple_of,
            **self._rank_settings(),
        )
        limit = trainer.limit_train_batches
        per_epoch = min(len(loader), limit) if isinstance(limit, int) else int(len(loader) * limit)
        interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch
        if trainer.limit_val_batches and every is not None and isinstance(interval, int) and interval > per_epoch:
            raise ValueError(
                f"trainer.val_check_interval: {interval} batches are more than an epoch has, which is {per_epoch}; set "
                "trainer.check_val_every_n_epoch to null, so that they are counted from the start of the run"
            )
        return loader

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """Every validation sample once; empty if the source has no validation split."""
        is_optional = self._command() == "fit"
        return [] if is_optional and "validation" not in self.datasets else self._eval_loader("validation")

    def test_dataloader(self) -> EvalLoader:
        """Every test sample once."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """Every sample of `predict_split` once."""
        return self._eval_loader(self.predict_split)

    @property
    def predict_split(self) -> str:
        """The split that the `predict` command reads: `predict`, else `test`, else `validation`."""
        return next((split for split in STAND_INS if split in self.datasets), "test")

    def _eval_loader(self, split: str) -> EvalLoader:
        return EvalLoader(
            self._dataset(split),
            batch_size=self.eval_batch_size,
            pad_to_multiple_of=min(self.pad_to_multiple_of, 8),
            **self._rank_settings(),
        )

    def _rank_settings(self) -> dict[str, Any]:
        trainer = self.trainer
        assert trainer is not None
        return {
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "num_workers": self.num_workers,
            "worker_timeout": self.worker_timeout,
            "pin_memory": trainer.strategy.root_device.type == "cuda",
        }

    def _dataset(self, split: str) -> SequenceDataset:
        if split not in self.datasets:
            if self.trainer is None and not self.datasets:
                raise ValueError("data: no split is open yet; outside a Trainer, call prepare_data() and setup() first")
            raise ValueError(
                f"data.source: it gives no {split} split, which this run needs: name its files (source.{split})"
            )
        return self.datasets[split]

    # Identity and vocabulary: what modules need

    def identity(self, split: Split) -> dict[str, Any]:
        """Everything that the masked sequences of a split depend on, as plain JSON values."""
        is_train = split == "train"
        return {
            "corpus_version": CORPUS_VERSION,
            "source": self._shared_source().fingerprint(split),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "filters": describe(self.filters),
            "format": describe(self._shared_format()),
            "masking": describe(self._masking(split)),
            "max_length": self.max_length,
            "seed": self.seed if is_train else 0,
            "max_eval_sequences": None if is_train else self.max_eval_sequences,
        }

    @property
    def has_next_sentence(self) -> bool:
        """Whether batches have labels for next-sentence prediction."""
        return self.format is not None and self.format.has_next_sentence

    @property
    def step_capacity(self) -> int:
        """Most tokens of an optimizer step: its budget, or `batch_size` sequences of maximum length."""
        most = None if self.batch_tokens is None else round(extremes_of(self.batch_tokens)[1])
        return most or self.batch_size * self.max_length

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; loaded when it is first used."""
        return load_tokenizer(self._tokenizer, revision=self._tokenizer_revision)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Size, special ids and entries of the tokenizer."""
        return vocabulary_of(self.tokenizer)

    def check_same_vocabulary(
        self, other: str | PreTrainedTokenizerBase, revision: str | None = None, *, role: str = "teacher"
    ) -> None:
        """Compare the vocabulary with that of a teacher or a student, entry by entry.

        Args:
            other: The other tokenizer, or the folder or Hub name where it is.
            revision: Commit, tag or branch on the Hub.
            role: What the network is, "teacher" or "student".

        Raises:
            ValueError: They differ; the message names the first difference.
        """
        theirs = self._tokenizer_of(other, revision, role)
        if theirs is not None:
            check_same_vocabulary(self.tokenizer, theirs, role=role)

    def shared_entries(
        self, teacher: str | PreTrainedTokenizerBase, revision: str | None = None
    ) -> Sequence[int] | None:
        """Compare the vocabulary with that of a teacher, of which it may be a subset.

        Args:
            teacher: The teacher's tokenizer, or the folder or Hub name where it is.
            revision: Commit, tag or branch on the Hub.

        Returns:
            None if they are the same. If the data's tokenizer is the teacher's with entries left out
            (`lit-distil vocabulary`), the teacher's id of each of the data's entries.

        Raises:
            ValueError: The vocabularies differ in another way; the message names the first difference.
        """
        theirs = self._tokenizer_of(teacher, revision, "teacher")
        if theirs is None:
            return None
        shared = shared_entries(self.tokenizer, theirs)
        if shared is None:
            check_same_vocabulary(self.tokenizer, theirs, role="teacher")
        return shared

    def read_also(self, name: str, teacher: str, revision: str | None = None) -> Vocabulary:
        """Let a teacher read the same texts with its own tokenizer: batches then have `Batch.readings[name]`.

        A text longer than `max_length` in the tokens of either is cut there, and the rest is dropped.

        Args:
            name: The teacher's name.
            teacher: The folder or Hub name of its tokenizer.
            revision: Commit, tag or branch on the Hub.

        Raises:
            ValueError: There is no tokenizer, or several tokenizers cannot read this data (`check_readable`).
        """
        check_readable(self.source, self.format, self.filters)
        reader = load_tokenizer(teacher, revision=revision)
        if name not in self.readers:
            self.readers[name] = reader
            opened, self.datasets = [*self.datasets], {}
            if opened and self.task is None:  # a module from a checkpoint asks after the splits are open
                for split in self._splits():
                    self._prepare_documents(split)
            if opened:
                self.setup("")
        return vocabulary_of(reader)

    def _tokenizer_of(
        self, network: str | PreTrainedTokenizerBase, revision: str | None, role: str
    ) -> PreTrainedTokenizerBase | None:
        """The tokenizer beside a network; None, with a warning, if there is none."""
        try:
            return load_tokenizer(network, revision=revision)
        except ValueError:
            rank_zero_warn(f"the {role} {network!r} has no tokenizer beside it: its vocabulary could not be compared")
            return None


def _content_of(dataset: SequenceDataset) -> str:
    """A hash of a dataset's tokens and labels; for a corpus it is computed from the manifest."""
    if isinstance(dataset, MaskedSequences):
        assert dataset.corpus.folder is not None
        return hash_values([shard.sha256 for shard in Manifest.read(dataset.corpus.folder).shards])
    assert isinstance(dataset, LabelledSequences)
    rows = [[short_hash(row.input_ids.tobytes(), 16).hex(), np.asarray(row.label).tolist()] for row in dataset.features]
    return hash_values(rows)
