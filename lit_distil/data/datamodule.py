"""TextDataModule: the one data module that pretraining, distillation and fine-tuning share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lit_distil.data.batching import EvalLoader, TrainLoader
from lit_distil.data.corpus.documents import DocumentSplits
from lit_distil.data.corpus.shards import CORPUS_VERSION
from lit_distil.data.formats import SequenceFormat
from lit_distil.data.masking import MaskingStrategy
from lit_distil.data.sequences import SequenceDataset, SpreadSequences
from lit_distil.data.sources.base import SPLITS, DocumentSource, RowSource, Split
from lit_distil.data.sources.mixture import DocumentFilters
from lit_distil.data.sources.rows import STAND_INS, open_rows
from lit_distil.data.tokenizers import load_tokenizer, tokenizer_hash, vocabulary_of
from lit_distil.files import describe
from lit_distil.tasks import Task
from lit_distil.types import Vocabulary


class TextDataModule(LightningDataModule):
    """Text to flat batches.

    With `format` and `masking` it serves documents to pretraining and distillation; with `task` it serves labelled
    rows to fine-tuning.

    Args:
        tokenizer: Folder or Hub name of the tokenizer.
        source: Where documents or rows come from.
        format: How documents become sequences; for pretraining and distillation.
        masking: Which positions to predict; for pretraining and distillation.
        task: What the rows mean; for fine-tuning.
        max_length: Tokens in a sequence at most, special tokens included.
        batch_size: Sequences in an optimizer step, over all ranks and accumulated micro-batches.
        batch_tokens: Tokens in an optimizer step, in place of `batch_size` sequences: what keeps steps comparable
            between formats (RoBERTa, section 4.2). A step differs from it by less than one sequence.
        length_window: Put sequences of like length into a step, out of so many steps' sequences at a time; None leaves
            the order random.
        eval_batch_size: Sequences in an evaluation batch of one rank.
        max_eval_sequences: Evaluate on so many sequences (or labelled rows) of a split, evenly spread over it; None
            takes all.
        validation_share: Share of the labelled training rows that is held out where the source gives no validation
            rows, of each class alike; 0 holds out none.
        num_workers: Processes that make batches; 0 makes them in the training process.
        seed: Of order and masks; None takes the run's (`seed_everything`).
        tokenizer_revision: Commit, tag or branch of the tokenizer on the Hub.
        cache_dir: Where tokenised corpora are kept; None is `$LIT_DISTIL_CACHE` or `~/.cache/lit_distil`.
        filters: Which documents to leave out of a corpus; None keeps all.
        num_processes: Processes that tokenise a corpus that is not in the cache; None takes one a core.
        verify_corpus: Whether to compare every file of a corpus with its sha256 before the run, which reads all of
            it; otherwise sizes are compared.
    """

    def __init__(
        self,
        tokenizer: str,
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
        batch_tokens: int | None = None,
        length_window: int | None = None,
        filters: DocumentFilters | None = None,
        num_processes: int | None = None,
        verify_corpus: bool = False,
    ) -> None:
        super().__init__()
        if (format is None) == (task is None):
            raise ValueError("data: give either format (pretraining, distillation) or task (fine-tuning), and not both")
        if task is None and not isinstance(source, DocumentSource):
            raise ValueError(f"data.source: {type(source).__name__} gives rows, and data.format needs documents")
        if task is not None and not isinstance(source, RowSource):
            raise ValueError(f"data.source: {type(source).__name__} gives documents, and data.task needs labelled rows")
        if max_length < 4:
            raise ValueError(f"data.max_length must be at least 4, got {max_length}")
        if eval_batch_size < 1:
            raise ValueError(f"data.eval_batch_size must be at least 1, got {eval_batch_size}")
        if not 0 <= validation_share < 1:
            raise ValueError(f"data.validation_share must be 0 or more and less than 1, got {validation_share}")
        self.tokenizer_name, self.tokenizer_revision = tokenizer, tokenizer_revision
        self.source, self.format, self.masking, self.task = source, format, masking, task
        self.max_length, self.batch_size = max_length, batch_size
        self.batch_tokens, self.length_window = batch_tokens, length_window
        self.eval_batch_size, self.max_eval_sequences = eval_batch_size, max_eval_sequences
        self.validation_share = validation_share
        self.num_workers, self.cache_dir = num_workers, cache_dir
        self.filters, self.num_processes, self.verify_corpus = filters, num_processes, verify_corpus
        self.seed = seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self.datasets: dict[str, SequenceDataset] = {}
        self._tokenizer: PreTrainedTokenizerBase | None = None

    # Facts that the modules ask for

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded once."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.tokenizer_name, revision=self.tokenizer_revision)
        return self._tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        """Size and special ids, as the networks need them."""
        return vocabulary_of(self.tokenizer)

    @property
    def has_next_sentence(self) -> bool:
        """Whether the format labels pairs."""
        return self.format is not None and self.format.has_next_sentence

    @property
    def step_capacity(self) -> int:
        """Tokens that an optimizer step may hold: its budget, or so many sequences of full length."""
        return self.batch_tokens or self.batch_size * self.max_length

    def check_same_vocabulary(self, name: str, revision: str | None = None, *, role: str = "teacher") -> None:
        """Compare this vocabulary with a teacher's, or with a student's (`role`), entry by entry.

        Raises:
            ValueError: They differ; the message tells the first difference.
        """
        try:
            other = load_tokenizer(name, revision=revision)
        except ValueError:
            rank_zero_warn(f"the {role} {name!r} has no tokenizer beside it: its vocabulary could not be compared")
            return
        ours, theirs = self.tokenizer.get_vocab(), other.get_vocab()
        if ours == theirs:
            self._check_same_special_ids(name, vocabulary_of(other), role)
            return
        differing = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
        token = min(differing, key=lambda t: (min(ours.get(t, len(ours)), theirs.get(t, len(theirs))), t))
        raise ValueError(
            f"data.tokenizer: {self.tokenizer_name!r} ({len(ours)} entries) is not the {role}'s vocabulary "
            f"({name!r}, {len(theirs)} entries): {len(differing)} tokens differ, the first {token!r} is "
            f"{ours.get(token, 'absent')} here and {theirs.get(token, 'absent')} there. {_way_out(name, role)}"
        )

    def _check_same_special_ids(self, name: str, theirs: Vocabulary, role: str) -> None:
        """The same entries may still be masked or padded with others."""
        ours = self.vocabulary.special_ids
        for special in ("mask_token_id", "pad_token_id", "cls_token_id", "sep_token_id"):
            if special in ours and special in theirs.special_ids and ours[special] != theirs.special_ids[special]:
                raise ValueError(
                    f"data.tokenizer: {self.tokenizer_name!r} has {special} {ours[special]} and the {role}'s "
                    f"({name!r}) {theirs.special_ids[special]}, of the same entries. {_way_out(name, role)}"
                )

    def identity(self, split: Split) -> dict[str, Any]:
        """All that the masked sequences of a split depend on, in plain values that JSON can hold."""
        assert isinstance(self.source, DocumentSource)
        is_train = split == "train"
        return {
            "corpus_version": CORPUS_VERSION,
            "source": self.source.fingerprint(split),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "filters": describe(self.filters),
            "format": describe(self.format),
            "masking": describe(self.masking),
            "max_length": self.max_length,
            "seed": self.seed if is_train else 0,
            "max_eval_sequences": None if is_train else self.max_eval_sequences,
        }

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Prepare what is not in the cache yet; Lightning calls this once a node, before the other ranks go on."""
        for split in self._splits_of_stage():
            if self.task is None:
                self._documents().prepare(split)
            else:  # whatever a source downloads or keeps, it does once and not in every rank
                next(iter(self._rows(split)), None)

    def setup(self, stage: str) -> None:
        """Open the splits that the stage needs."""
        if self.task is None:
            self._setup_documents()
        else:
            self._setup_rows(self.task)

    def train_dataloader(self) -> TrainLoader:
        """Batches as a function of the step, from the trainer's current step on."""
        trainer = self.trainer
        assert trainer is not None
        return TrainLoader(
            self._dataset("train"),
            batch_size=self.batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulate=trainer.accumulate_grad_batches,
            seed=self.seed,
            num_workers=self.num_workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            first_step=lambda: trainer.global_step,
            batch_tokens=self.batch_tokens,
            length_window=self.length_window,
        )

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """Every validation sample once; none where the source has no validation split."""
        is_optional = self._command() == "fit"
        return [] if is_optional and "validation" not in self.datasets else self._eval_loader("validation")

    def test_dataloader(self) -> EvalLoader:
        """Every test sample once."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """Every sample of the split that `predict` is about once."""
        return self._eval_loader(self.predict_split)

    @property
    def predict_split(self) -> str:
        """The split that `predict` is about: `predict`, or `test` where there is none, or else `validation`."""
        return next((split for split in STAND_INS if split in self.datasets), "test")

    # Inside

    def _dataset(self, split: str) -> SequenceDataset:
        if split not in self.datasets:
            raise ValueError(
                f"data.source: it gives no {split} split, which this run needs: name its files (source.{split}), or, "
                "outside a Trainer, call prepare_data() and setup() first"
            )
        return self.datasets[split]

    def _eval_loader(self, split: str) -> EvalLoader:
        trainer = self.trainer
        assert trainer is not None
        return EvalLoader(
            self._dataset(split),
            batch_size=self.eval_batch_size,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            num_workers=self.num_workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )

    def _command(self) -> str | None:
        """`fit`, `validate`, `test` or `predict`; None where there is no trainer to ask."""
        function = None if self.trainer is None else self.trainer.state.fn
        return None if function is None else str(getattr(function, "value", function))

    def _splits_of_stage(self) -> list[Split]:
        """The splits that the running command needs; all of them where there is no trainer to ask."""
        wanted: dict[str, list[Split]] = {
            "fit": ["train", "validation"],
            "validate": ["validation"],
            "test": ["test"],
            "predict": ["predict" if self.task is not None else "test"],
        }
        return wanted.get(self._command() or "", list(SPLITS))

    def _documents(self) -> DocumentSplits:
        assert isinstance(self.source, DocumentSource) and self.format is not None
        return DocumentSplits(
            self.source,
            self.tokenizer,
            self.format,
            self.masking,
            max_length=self.max_length,
            seed=self.seed,
            cache_dir=self.cache_dir,
            filters=self.filters,
            num_processes=self.num_processes,
            verify=self.verify_corpus,
        )

    def _setup_documents(self) -> None:
        for split in self._splits_of_stage():
            dataset = None if split in self.datasets else self._documents().open(split)
            if dataset is not None:
                self.datasets[split] = dataset if split == "train" else self._cut(dataset)

    def _setup_rows(self, task: Task) -> None:
        assert isinstance(self.source, RowSource)
        missing = [split for split in self._splits_of_stage() if split not in self.datasets]
        if missing == ["predict"] and "test" in self.datasets:  # which stands for it
            return
        if missing:
            opened = open_rows(
                self.source,
                task,
                self.tokenizer,
                missing,
                max_length=self.max_length,
                labelled=self._command() != "predict",
                max_eval_rows=self.max_eval_sequences,
                validation_share=self.validation_share,
                seed=self.seed,
            )
            self.datasets = {**opened, **self.datasets}

    def _rows(self, split: Split) -> Iterable[dict[str, Any]]:
        assert isinstance(self.source, RowSource)
        return self.source.rows(split)

    def _cut(self, dataset: SequenceDataset) -> SequenceDataset:
        if self.max_eval_sequences is None or len(dataset) <= self.max_eval_sequences:
            return dataset
        return SpreadSequences(dataset, self.max_eval_sequences)


def _way_out(name: str, role: str) -> str:
    if role == "teacher":
        return f"Use the teacher's tokenizer: tokenizer: {name}"
    return f"Take a {role} that was trained with the teacher's tokenizer, or make one of the teacher's layers"
