"""TextDataModule: the one data module that pretraining, distillation and fine-tuning share."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_distil.data.batching import EvalLoader, MaskedSequences, SequenceDataset, TrainLoader
from lit_distil.data.corpus import CORPUS_VERSION, TokenCorpus, write_corpus
from lit_distil.data.docstrings import default_cache_dir
from lit_distil.data.formats import SequenceFormat
from lit_distil.data.labelled import LabelledSequences
from lit_distil.data.masking import MaskingStrategy
from lit_distil.data.sources import SPLITS, DocumentSource, RowSource, Split
from lit_distil.tasks import Task
from lit_distil.types import Vocabulary

_UNLIMITED = 10**12  # a tokenizer that knows no limit says 1e30


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
        eval_batch_size: Sequences in an evaluation batch of one rank; None takes what one training micro-batch has.
        max_eval_sequences: Evaluate on the first so many sequences of a split; None takes all.
        num_workers: Processes that make batches; 0 makes them in the training process.
        seed: Of order and masks; None takes the run's (`seed_everything`).
        tokenizer_revision: Commit, tag or branch of the tokenizer on the Hub.
        cache_dir: Where tokenised corpora are kept; None is `$LIT_DISTIL_CACHE` or `~/.cache/lit_distil`.
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
        eval_batch_size: int | None = None,
        max_eval_sequences: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        tokenizer_revision: str | None = None,
        cache_dir: str | None = None,
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
        self.tokenizer_name, self.tokenizer_revision = tokenizer, tokenizer_revision
        self.source, self.format, self.masking, self.task = source, format, masking, task
        self.max_length, self.batch_size = max_length, batch_size
        self.eval_batch_size, self.max_eval_sequences = eval_batch_size, max_eval_sequences
        self.num_workers, self.cache_dir = num_workers, cache_dir
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

    def check_same_vocabulary(self, name: str, revision: str | None = None) -> None:
        """Compare this vocabulary with a teacher's, entry by entry.

        Raises:
            ValueError: They differ; the message tells the first difference.
        """
        try:
            theirs = AutoTokenizer.from_pretrained(name, revision=revision).get_vocab()
        except (OSError, ValueError, KeyError):
            rank_zero_warn(f"the teacher {name!r} has no tokenizer beside it: its vocabulary could not be compared")
            return
        ours = self.tokenizer.get_vocab()
        if ours == theirs:
            return
        differing = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
        token = differing[0]
        raise ValueError(
            f"data.tokenizer: {self.tokenizer_name!r} ({len(ours)} entries) is not the teacher's vocabulary "
            f"({name!r}, {len(theirs)} entries): {len(differing)} tokens differ, the first {token!r} is "
            f"{ours.get(token)} here and {theirs.get(token)} there. Use the teacher's tokenizer: tokenizer: {name}"
        )

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Tokenise what is not in the cache yet; Lightning calls this once a node, before the other ranks go on."""
        if self.task is None:
            for split in self._splits_of_stage():
                self._prepare(split)

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
        )

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """Every validation sample once; none where the source has no validation split."""
        return self._eval_loader("validation") if "validation" in self.datasets else []

    def test_dataloader(self) -> EvalLoader:
        """Every test sample once."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """Every sample of the `predict` split once, or of the test split where there is none."""
        return self._eval_loader("predict" if "predict" in self.datasets else "test")

    # Inside

    def _dataset(self, split: str) -> SequenceDataset:
        if split not in self.datasets:
            raise ValueError(f"data.source: it gives no {split} split, which this run needs")
        return self.datasets[split]

    def _eval_loader(self, split: str) -> EvalLoader:
        trainer = self.trainer
        assert trainer is not None
        share = trainer.world_size * trainer.accumulate_grad_batches
        return EvalLoader(
            self._dataset(split),
            batch_size=self.eval_batch_size or max(1, self.batch_size // share),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            num_workers=self.num_workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )

    def _splits_of_stage(self) -> list[Split]:
        """The splits that the running command needs; all of them where there is no trainer to ask."""
        function = None if self.trainer is None else self.trainer.state.fn
        wanted: dict[str, list[Split]] = {
            "fit": ["train", "validation"],
            "validate": ["validation"],
            "test": ["test"],
            "predict": ["predict" if self.task is not None else "test"],
        }
        return wanted.get(str(getattr(function, "value", function)), list(SPLITS))

    def _corpus_folder(self, split: Split) -> Path | None:
        """Folder of the tokenised split, named by everything that it depends on; None where the split is empty."""
        assert isinstance(self.source, DocumentSource)
        key = json.dumps([CORPUS_VERSION, self.source.fingerprint(split), _tokenizer_hash(self.tokenizer)])
        return default_cache_dir(self.cache_dir) / "corpora" / hashlib.sha256(key.encode()).hexdigest()[:24]

    def _prepare(self, split: Split) -> None:
        folder = self._corpus_folder(split)
        if folder is None or folder.is_dir():
            return
        documents = self._documents(split)
        if documents is None:
            return
        rank_zero_info(f"tokenising the {split} split into {folder}")
        write_corpus(documents, self.tokenizer, folder)

    def _documents(self, split: Split) -> Iterator[list[str]] | None:
        assert isinstance(self.source, DocumentSource)
        documents = iter(self.source.documents(split))
        first = next(documents, None)
        if first is None:
            if split == "train":
                raise ValueError("data.source: the train split has no documents; check the files and their content")
            return None
        return itertools.chain([first], documents)

    def _setup_documents(self) -> None:
        assert self.format is not None
        for split in self._splits_of_stage():
            folder = self._corpus_folder(split)
            if split in self.datasets or folder is None or not folder.is_dir():
                continue
            corpus = TokenCorpus.load(folder)
            is_train = split == "train"
            table = self.format.build(corpus, self.max_length, self.seed if is_train else 0)
            masking = copy.deepcopy(self.masking)  # each split binds its own token counts
            if masking is not None:
                masking.bind(corpus.token_counts)
            dataset = MaskedSequences(
                corpus,
                table,
                format=self.format,
                vocabulary=self.vocabulary,
                masking=masking,
                seed=self.seed if is_train else 0,
            )
            self.datasets[split] = dataset if is_train else self._cut(dataset)
            rank_zero_info(f"{split}: {len(dataset):,} sequences, {len(corpus.tokens):,} tokens")

    def _setup_rows(self, task: Task) -> None:
        assert isinstance(self.source, RowSource)
        wanted = self._splits_of_stage()
        task.bind(self.source.rows("train"))
        for split in wanted:
            if split in self.datasets:
                continue
            rows = list(self.source.rows(split))
            if split == "predict" and not rows:
                split, rows = "test", list(self.source.rows("test"))
            if not rows:
                continue
            labelled = "predict" not in wanted
            features = task.encode(rows, self.tokenizer, max_length=self.max_length, labelled=labelled)
            dataset = LabelledSequences(features)
            self.datasets[split] = dataset if split == "train" else self._cut(dataset)
            rank_zero_info(f"{split}: {len(dataset):,} rows, {int(dataset.lengths.sum()):,} tokens")

    def _cut(self, dataset: SequenceDataset) -> SequenceDataset:
        if self.max_eval_sequences is None or len(dataset) <= self.max_eval_sequences:
            return dataset
        return FirstSequences(dataset, self.max_eval_sequences)


class FirstSequences(SequenceDataset):
    """The first sequences of a data set."""

    def __init__(self, dataset: SequenceDataset, size: int) -> None:
        self.dataset, self.size = dataset, size

    def __len__(self) -> int:
        """The number of sequences."""
        return self.size

    @property
    def lengths(self) -> np.ndarray:
        """int64 `[N]`."""
        return self.dataset.lengths[: self.size]

    def collate(self, sample_ids: np.ndarray, epochs: np.ndarray) -> Any:
        """As the whole data set does."""
        return self.dataset.collate(sample_ids, epochs)


def load_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer from a folder or the Hub, or from a folder that holds `tokenizer.json` or `vocab.txt` alone.

    Raises:
        ValueError: There is none, or it lacks what masked-LM needs (a mask and a padding token).
    """
    try:
        tokenizer: PreTrainedTokenizerBase | None = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        tokenizer = _bare_tokenizer(Path(name))
        if tokenizer is None:
            raise ValueError(
                f"data.tokenizer: no tokenizer in {name!r} ({str(error).splitlines()[0]}). Give a folder that holds "
                "tokenizer.json or vocab.txt (`lit-distil tokenizer` trains one), or, with a network, a Hub name."
            ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"data.tokenizer: {name!r} has no fast tokenizer (tokenizer.json)")
    for field in ("mask_token", "pad_token"):
        if getattr(tokenizer, field) is None:
            raise ValueError(f"data.tokenizer: {name!r} has no {field}, which masked language modelling needs")
    return tokenizer


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Size and special ids of a tokenizer."""
    names = ("pad", "mask", "cls", "sep", "bos", "eos", "unk")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return Vocabulary(
        size=len(tokenizer), special_ids={name: value for name, value in ids.items() if value is not None}
    )


def _bare_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """A BERT tokenizer from a folder with `vocab.txt` and nothing that says whose it is."""
    from transformers import BertTokenizer

    vocabulary = folder / "vocab.txt"
    if not vocabulary.is_file():
        return None
    is_cased = any(line[:1].isupper() for line in itertools.islice(vocabulary.open(encoding="utf-8"), 200, 20_000))
    return BertTokenizer.from_pretrained(str(folder), do_lower_case=not is_cased)


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    backend: Any = tokenizer.backend_tokenizer
    return hashlib.sha256(backend.to_str().encode()).hexdigest()
