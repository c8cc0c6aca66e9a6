"""`lit-distil inspect`: show batches of a configuration in readable form, without building or training a network."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from argparse import SUPPRESS
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.states import TrainerFn

from lit_distil.commands.inspect.batches import (
    Painter,
    Reader,
    TokenTexts,
    batches_page,
    legend,
    sequence_text,
    summary,
    totals_of,
    totals_text,
)
from lit_distil.commands.pages import check_pages
from lit_distil.data import LabelledSequences, MaskedSequences, SequenceDataset, TextDataModule
from lit_distil.files import write_file
from lit_distil.messages import check_at_least
from lit_distil.modules import EncoderModule
from lit_distil.run import TrainingCLI
from lit_distil.run import run as run_training_command
from lit_distil.tasks.base import place_of
from lit_distil.types import Batch

# for each split: the stage in which the data module opens it, and the hook that returns its batches
_STAGES = {
    "train": (TrainerFn.FITTING, "train_dataloader"),
    "validation": (TrainerFn.VALIDATING, "val_dataloader"),
    "test": (TrainerFn.TESTING, "test_dataloader"),
    "predict": (TrainerFn.PREDICTING, "predict_dataloader"),
}
# the settings that decide which sequences are in a batch
_TRAINER_SETTINGS = ("accumulate_grad_batches", "max_steps", "max_epochs")
_OPTIONS = ("split", "batches", "step", "samples", "epoch", "show", "top", "color", "out")


class StandingTrainer(Trainer):
    """A Trainer in one process on the CPU that reports a given step, which data modules ask for."""

    standing_at = 0

    @property
    def global_step(self) -> int:
        """The number of optimizer steps that the run would have done."""
        return self.standing_at


class InspectCLI(TrainingCLI):
    """Reads a configuration as `fit` does, builds its data module and nothing else, and shows batches."""

    options: Namespace
    run_name: str

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Build the parser of `fit`, under the name of this command."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        parser = self._parser("fit")
        parser.prog = "lit-distil inspect"
        parser.description = "Show batches of a configuration in readable form, in the terminal and as a page."
        helps = {"overwrite": "replace the page of an earlier `inspect`", "allow_changes": SUPPRESS}
        helps |= {"ckpt_path": SUPPRESS, "weights_only": SUPPRESS}  # no network is built
        for action in parser._actions:
            action.help = helps.get(action.dest, action.help)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Like LightningCLI, but the model is optional, so that data can be inspected before there is one."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        parser.add_lightning_class_args(EncoderModule, "model", subclass_mode=True, required=False)
        parser.add_lightning_class_args(TextDataModule, "data", subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of this command."""
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        add("--split", type=Literal["train", "validation", "test", "predict"], default="train", help="which split")
        batches = "how many micro-batches of one process; null is 1, or with --step all of the step"
        add("--batches", type=int | None, default=None, help=batches)
        add("--step", type=int, default=0, help="optimizer steps done before the first batch (split train)")
        add("--samples", type=list[int] | None, default=None, help="show these samples instead, such as [0,17]")
        add("--epoch", type=int, default=0, help="with --samples: the epoch whose masks to show")
        add("--show", type=int | None, default=8, help="sequences of each batch to write out; null writes all")
        add("--top", type=int, default=20, help="how many of the most frequent tokens to name")
        add("--color", type=Literal["always", "never", "auto"], default="auto", help="auto: on a terminal")
        add("--out", type=str | None, default=None, help="HTML file; null is inspect.html in the run's folder")

    def before_instantiate_classes(self) -> None:
        """Reduce the configuration to what the data needs, so that no network, logger or callback is built."""
        config = self.config[self.subcommand]
        config.ckpt_path = None  # batches do not depend on weights
        super().before_instantiate_classes()
        self.options = Namespace(**{name: config[name] for name in _OPTIONS})
        self.run_name = str(config.trainer.default_root_dir)
        given = {name: config.trainer[name] for name in _TRAINER_SETTINGS if config.trainer.get(name) is not None}
        _check(self.options)
        check_pages(_page(self.options, self.run_name), (), overwrite=config.overwrite)
        self.config_dump: dict[str, Any] = {}  # only checkpoints use it
        kept = Namespace(data=config.data, trainer=Namespace(**given))
        self.config = Namespace({"subcommand": self.subcommand, str(self.subcommand): kept})

    def settle_folder(self, config: Any) -> None:
        """Do nothing, since no run is written."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer at the requested step."""
        log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
        level = log.level
        log.setLevel(logging.WARNING)  # hide the notice about unused accelerators
        try:
            trainer = StandingTrainer(
                accelerator="cpu",
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **vars(self.config[self.subcommand].trainer),
            )
        finally:
            log.setLevel(level)
        trainer.standing_at = self.options.step
        return trainer

    def fit(self, **settings: Any) -> None:
        """Show the batches instead of training."""
        show_batches(self.datamodule, self.trainer, self.options, run=self.run_name)


def show_batches(data: TextDataModule, trainer: Trainer, options: Namespace, *, run: str) -> None:
    """Print batches of a data module and write them as a page.

    Args:
        data: The data module, not set up yet.
        trainer: Tells the data module which step the run is at (`StandingTrainer`).
        options: What to show: the options of `InspectCLI`.
        run: Folder of the run; the page goes there unless `options.out` names another file.

    Raises:
        ValueError: The split has no data, or lacks a requested sample.
    """
    data.num_workers = 0  # starting workers would take longer
    data.trainer = trainer
    stage, hook = _STAGES[options.split]
    trainer.state.fn = stage
    data.prepare_data()
    data.setup(stage.value)
    loader = getattr(data, hook)()  # raises if the split has no data
    split = data.predict_split if options.split == "predict" else options.split
    dataset = data.datasets[split]
    if options.samples is None:
        whole_step = trainer.accumulate_grad_batches if options.step else 1
        batches = list(islice(loader, options.batches or whole_step))
    else:
        batches = [_batch_of(dataset, split, options)]
    names, label_kind = {}, None
    if data.task is not None:
        names, label_kind = data.task.head_settings().get("id2label", {}), data.task.label_kind
    tokens = TokenTexts(data.tokenizer, set(data.vocabulary.special_ids.values()))
    reader = Reader(tokens, data.vocabulary, names, _places(dataset, batches), label_kind)
    totals = totals_of(batches, reader, top=options.top)
    rows = [[f"{split} split", _size_of(dataset)], *summary(totals)]
    shown = [reader.view(number, batch, options.show) for number, batch in enumerate(batches, start=1)]

    painter = Painter(options.color == "always" or (options.color == "auto" and _shows_colours()))
    if marks := legend(shown, painter):
        print(marks)
    for view in shown:
        sequences = [sequence_text(sequence, painter) for sequence in view.sequences]
        for text in (painter(view.heading, "heading"), *sequences, *filter(None, [view.rest])):
            print(f"\n{text}")
    print(f"\n{totals_text(totals, rows, painter)}")

    out = _page(options, run)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, batches_page(f"{run}: {split} batches", shown, totals, rows))
    print(f"\nwritten: {out}")


def run(arguments: list[str]) -> None:
    """Parse the arguments and show the batches."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # sys.argv has this command's name
        run_training_command(["fit", *arguments], InspectCLI)


def _check(options: Namespace) -> None:
    check_at_least(1, {"batches": options["batches"]})
    check_at_least(0, {name: options[name] for name in ("step", "epoch", "show", "top")})
    if options.step and options.split != "train":
        raise ValueError(f"step {options.step}: only training has steps; take --split train, or leave out --step")
    if options.samples is not None and (options.step or options.batches is not None):
        raise ValueError("samples: give either samples, or batches and step, and not both")
    if options.samples == []:
        raise ValueError("samples: give at least one, such as --samples [0]")
    if options.out is not None and (Path(options.out).is_dir() or Path(options.out).suffix not in (".html", ".htm")):
        raise ValueError(f"out must be a file that ends in .html, got {options.out!r}")


def _page(options: Namespace, run: str) -> Path:
    return Path(options.out or Path(run, "inspect.html"))


def _batch_of(dataset: SequenceDataset, split: str, options: Namespace) -> Batch:
    """The requested samples as one batch."""
    whole = _whole(dataset)
    for sample in options.samples:
        if not 0 <= sample < len(whole):
            raise ValueError(f"samples: no sample {sample}; the {split} split has 0 to {len(whole) - 1}")
    samples = np.array(options.samples, dtype=np.int64)
    return whole.collate(samples, np.full_like(samples, options.epoch))


def _size_of(dataset: SequenceDataset) -> str:
    whole = _whole(dataset)
    if isinstance(whole, MaskedSequences):
        corpus = whole.corpus
        return f"{corpus.num_documents:,} documents, {len(whole):,} sequences, {corpus.num_tokens:,} tokens"
    return f"{len(dataset):,} sequences, {int(dataset.lengths.sum()):,} tokens"


def _whole(dataset: SequenceDataset) -> SequenceDataset:
    """The full data set, which sample ids refer to: a split may be evaluated on only some of its sequences."""
    whole: SequenceDataset = getattr(dataset, "dataset", dataset)
    return whole


def _places(dataset: SequenceDataset, batches: list[Batch]) -> dict[int, str]:
    if not isinstance(dataset, LabelledSequences) or not dataset.rows:
        return {}
    samples = {sample for batch in batches for sample in batch.sample_ids.tolist()}
    return {sample: place_of(dataset.rows[dataset.features[sample].row]) for sample in samples}


def _shows_colours() -> bool:
    """Whether stdout is a terminal that accepts colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
