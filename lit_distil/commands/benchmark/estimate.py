"""`lit-distil benchmark estimate`: estimate hours and memory of runs from their configurations alone.

Nothing is downloaded. A network that an earlier run in the list will export is known from that run's configuration, and
the networks and data sets of the papers' recipes from their published figures.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from lit_distil.commands.prepare import prepare
from lit_distil.console import bullets, text_table
from lit_distil.data import HubDataset, PreparedCorpus, TextDataModule, load_tokenizer
from lit_distil.data.batching import num_shares
from lit_distil.data.corpus.shards import MANIFEST, Manifest
from lit_distil.data.tokenizers import vocabulary_of
from lit_distil.messages import check_at_least
from lit_distil.models import FlatNetwork, NetworkSource, Pretrained, StudentInitialisation
from lit_distil.models.architectures import Head
from lit_distil.models.flops import NetworkFlops, peak_flops, sheet_rate
from lit_distil.models.sources import STAND_INS, random_network, sketching
from lit_distil.models.students import freeze_parts
from lit_distil.modules import EncoderModule
from lit_distil.modules.teachers import StudentModule
from lit_distil.objectives.vocabulary import MOST_PIECES
from lit_distil.pieces import OptionParser, call_command
from lit_distil.run import TrainingCLI
from lit_distil.run import run as run_command
from lit_distil.schedules import StepValue, extremes_of
from lit_distil.types import Vocabulary

PUBLISHED: dict[str, dict[str, Any]] = {
    "google-bert/bert-base-uncased": {"model_type": "bert"},
    "FacebookAI/roberta-base": {
        "model_type": "roberta",
        "vocab_size": 50_265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
}
"""Networks of the papers' recipes: their differences from the defaults of their architecture."""

TEXT_BYTES = {"20231101.en": 20_200_000_000}
"""Bytes of text by configuration of the data set `wikimedia/wikipedia` (from its card)."""

ROWS = {"cola": 8_551, "mnli": 392_702, "mrpc": 3_668, "qnli": 104_743, "qqp": 363_846, "rte": 2_490}
ROWS |= {"sst2": 67_349, "stsb": 5_749, "wnli": 635}
"""Training rows by configuration of the data set `nyu-mll/glue` (from its card)."""

RESULTS = "results/gpu/speed.json"
"""The file that `make gpu` writes."""

BYTES_PER_TOKEN = 4.5
ASSUMED_MFU = 0.35
LEAST_SECONDS = 0.02
"""Lower bound for a micro-batch of any size on a GPU: the host has to launch some thousand kernels."""


class EstimateCLI(TrainingCLI):
    """Reads a configuration as `fit` does, and builds its module and data module without weights, text or Trainer."""

    def __init__(self, *args: Any, found: list[TrainingCLI], **settings: Any) -> None:
        self.found = found
        super().__init__(*args, **settings)

    def before_instantiate_classes(self) -> None:
        """Prepare for a run that starts anew."""
        self.config[self.subcommand].ckpt_path = None
        super().before_instantiate_classes()

    def settle_folder(self, config: Any) -> None:
        """Do nothing, since no run is written."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None, because its devices may not exist here."""

    def _set_seed(self) -> None:
        """Do nothing, since nothing is drawn."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.found.append(self)


KEPT_BYTES = {"fp32": 76, "half": 46}
"""Bytes that a BERT block keeps for backward per token and unit of width, without attention scores; counted."""

INPUT_BYTES = 4
"""What it keeps if its activations are recomputed (`model.activation_checkpointing`)."""

GIGABYTES = (16, 24, 80)
"""GPU sizes for which to print the largest micro-batch; a tenth is left for what is not counted."""


@dataclass(frozen=True)
class Stage:
    """A run, by its configuration.

    Attributes:
        folder: Where it writes.
        kind: Architecture of the teacher, or of the trained network without one.
        distils: Whether a teacher runs.
        length: Most tokens of a sequence.
        steps: Optimizer steps.
        tokens: Tokens per step.
        flops: FLOPs per step, counted as for `train/mfu`.
        parameters: Parameters of the trained network.
        fixed: Bytes per device that do not depend on the batch: weights, gradients and the optimizer's state.
        per_token: Bytes per token of a micro-batch.
        micro_batches: Micro-batches per step.
        devices: Number of devices.
        precision: The Trainer's precision.
    """

    folder: str
    kind: str
    distils: bool
    length: int
    steps: int
    tokens: int
    flops: float
    parameters: int
    fixed: float
    per_token: float
    micro_batches: int
    devices: int
    precision: str

    @property
    def micro_tokens(self) -> float:
        """Tokens of a micro-batch on one device."""
        return self.tokens / (self.devices * self.micro_batches)

    @property
    def memory(self) -> float:
        """Bytes on each device."""
        return self.fixed + self.per_token * self.micro_tokens

    def largest(self, gigabytes: float) -> int:
        """Most tokens of a micro-batch on a device with this much memory; 0 if not even the weights fit."""
        return max(0, int((0.9e9 * gigabytes - self.fixed) / self.per_token))

    def seconds(self, rate: float) -> float:
        """Seconds of training, at `rate` operations a second per device."""
        return self.steps * max(self.flops / (rate * self.devices), self.micro_batches * LEAST_SECONDS)


@dataclass
class Chain:
    """Reads the commands of a chain of runs, in order.

    Attributes:
        num_devices: What `devices: auto` means.
        networks: The network's configuration by folder of an export that a run will write.
        corpora: The source by folder of a corpus that will be prepared.
        notes: Assumptions that do not come from the configurations.
    """

    num_devices: int = 1
    networks: dict[str, PretrainedConfig] = field(default_factory=dict)
    corpora: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def read(self, words: Sequence[str]) -> Stage | None:
        """The Stage of a `fit` command (the words after `lit-distil`); None for other commands, which take little time.

        Raises:
            ValueError: An option or a value is wrong, or a stage starts from something that does not exist.
        """
        if words[:1] == ["prepare"]:
            call_command(self._noting_the_corpus(), list(words[1:]))
        if words[:1] != ["fit"]:
            return None
        found: list[TrainingCLI] = []
        anew = [word for word in words if word not in ("--overwrite", "--ckpt_path", "last")]
        run_command(anew, EstimateCLI, found=found)
        config: Any = found[0].config["fit"]
        return self.stage(found[0].model, found[0].datamodule, config.trainer, config.data.init_args.tokenizer)

    def _noting_the_corpus(self) -> Callable[..., None]:
        @functools.wraps(prepare)
        def note(**settings: Any) -> None:
            self.corpora[settings["out"]] = settings["source"]

        return note

    def stage(self, module: EncoderModule, data: TextDataModule, trainer: Any, tokenizer: str) -> Stage:
        """The run of a module on data, with the Trainer's settings; builds no networks and reads no data."""
        trained, teachers = self._networks(module, data, tokenizer)
        self.networks[str(Path(trainer.default_root_dir, "export"))] = trained.config
        tokens, precision = data.step_capacity, str(trainer.precision)
        if isinstance(data.batch_tokens, StepValue):
            self.notes[f"data.batch_tokens grows over the steps; each is counted with {tokens:,}, its most"] = None
        micro_batches, devices = trainer.accumulate_grad_batches or 1, _num_devices(trainer, self.num_devices)
        num_shares(devices, micro_batches, data.batch_size if data.batch_tokens is None else None)
        share = tokens / (devices * micro_batches)
        filled = math.ceil(share / data.pad_to_multiple_of) * data.pad_to_multiple_of / share
        if filled > 1.01:
            note = f"data.pad_to_multiple_of makes {share:,.0f} tokens of a micro-batch {filled * share:,.0f}"
            self.notes[note] = None
        lengths = [data.max_length] * round(tokens / data.max_length)
        rate = extremes_of(getattr(data.masking, "rate", 1.0))[1]
        rows = tokens if data.task is not None or module.terms.need_all_rows else round(rate * tokens)
        frozen = sum(_parameters(network) for network in teachers)
        trains, is_half = _parameters(trained), precision.startswith(("16", "bf16"))
        of_teacher = 2 if "16" in (getattr(module, "teacher_dtype", None) or "") else 6 if is_half else 4
        layers, every = trained.num_layers, module.activation_checkpointing
        recomputed = math.ceil(layers / every) if every else 0
        # kept by the blocks, including one recomputed block; then logits and gradients of the vocabulary pass
        whole = KEPT_BYTES["half" if is_half else "fp32"]
        kept = (layers - recomputed + bool(every)) * whole + INPUT_BYTES * recomputed
        logits = 4 * (2 + len(teachers)) * rows / tokens * getattr(trained, "num_logits", 0) / MOST_PIECES
        return Stage(
            str(trainer.default_root_dir),
            kind=(teachers[0] if teachers else trained).config.model_type,
            distils=bool(teachers),
            length=data.max_length,
            steps=self._steps(trainer, data, tokens),
            tokens=tokens,
            flops=filled * sum(NetworkFlops(network)(lengths, rows) for network in (trained, *teachers)),
            parameters=trains,
            fixed=(18 if is_half else 16) * trains + of_teacher * frozen,
            per_token=filled * (kept * trained.config.hidden_size + logits),
            micro_batches=micro_batches,
            devices=devices,
            precision=precision,
        )

    def _networks(self, module: Any, data: TextDataModule, tokenizer: str) -> tuple[FlatNetwork, list[FlatNetwork]]:
        """The trained network and the teachers that run, without weights."""
        head: Head = "pretraining" if data.has_next_sentence and not isinstance(module, StudentModule) else "masked_lm"
        head = head if data.task is None else data.task.head
        teachers: list[PreTrainedModel] = []
        if not isinstance(module, StudentModule):
            network = module.network_class(self._sketch(module.network_source, head, tokenizer))
        else:
            teachers = [self._sketch(Pretrained(str(one)), head, tokenizer) for one in module.teacher_sources.values()]
            source = module.student_source
            made = source.sketch(teachers[0]) if isinstance(source, StudentInitialisation) else None
            network = module.network_class(made or self._sketch(source, head, tokenizer))
            freeze_parts(network, head=False, positions=module.freeze_positions)
        return network, [module.network_class(one).requires_grad_(False) for one in teachers]

    def _sketch(self, source: Any, head: Head, tokenizer: str) -> PreTrainedModel:
        if not isinstance(source, Pretrained):
            made = source.sketch(self._vocabulary(tokenizer), head=head) if isinstance(source, NetworkSource) else None
            if made is None:
                raise ValueError(f"model: only building {type(source).__name__} tells its size")
            return made
        config = self._config(source.name_or_path)
        config.update(source.overrides)
        with sketching():
            return random_network(head, config)

    def _config(self, name: str) -> PretrainedConfig:
        """The configuration of a network that an earlier stage exports, of a published one, or of a folder."""
        if name in self.networks:
            return type(self.networks[name]).from_dict(self.networks[name].to_dict())
        if name in PUBLISHED:
            self.notes[f"{name}: as it was published, not fetched"] = None
            return AutoConfig.for_model(**PUBLISHED[name])
        return Pretrained(name).read_config()

    def _vocabulary(self, tokenizer: str) -> Vocabulary:
        if tokenizer not in self.networks and tokenizer not in PUBLISHED:
            return vocabulary_of(load_tokenizer(tokenizer))
        config = self._config(tokenizer)
        ids = {name: getattr(config, name, None) for name in STAND_INS} | {"pad_token_id": config.pad_token_id}
        return Vocabulary(config.vocab_size, {name: value for name, value in ids.items() if value is not None})

    def _steps(self, trainer: Any, data: TextDataModule, tokens: int) -> int:
        """Steps of the run: until `max_steps` or the end of `max_epochs`, whichever comes first."""
        steps, epochs = trainer.max_steps or -1, trainer.max_epochs or -1
        if steps < 1 and epochs < 1:
            raise ValueError("trainer.max_steps: give it, or trainer.max_epochs, to estimate a run by its length")
        try:
            of_epochs = self._steps_of_epochs(epochs, data, tokens) if epochs > 0 else math.inf
        except (ValueError, OSError):  # the length of the text is not known here
            if steps < 1:
                raise
            of_epochs = math.inf
        return int(min(of_epochs, steps if steps > 0 else math.inf))

    def _steps_of_epochs(self, epochs: int, data: TextDataModule, tokens: int) -> int:
        if data.task is None:
            return math.ceil(epochs * self._tokens(data.source) / tokens)
        rows = ROWS.get(data.source.config or "") if isinstance(data.source, HubDataset) else None
        if rows is None:
            source: Any = data.source
            rows = len([*source.rows("train")])
        return epochs * math.ceil(rows / data.batch_size)

    def _tokens(self, source: Any) -> float:
        """Tokens of the training text."""
        if isinstance(source, PreparedCorpus):
            if Path(source.folder, "train", MANIFEST).is_file():
                return Manifest.read(Path(source.folder, "train")).tokens
            source = self.corpora.get(source.folder, source)
        known = TEXT_BYTES.get(source.config or "") if isinstance(source, HubDataset) else None
        size = known or (None if isinstance(source, PreparedCorpus) else source.text_bytes("train"))
        if size is None:
            raise ValueError("data.source: its size is unknown before it is read; give trainer.max_steps")
        self.notes[f"the corpus: {size / 1e9:.3g} GB of text, {BYTES_PER_TOKEN} bytes a token"] = None
        return size / BYTES_PER_TOKEN


def _num_devices(trainer: Any, auto: int) -> int:
    """Number of devices on all nodes in a Trainer's settings; `auto` is used if they leave it open."""
    devices = trainer.devices
    if isinstance(devices, str) and "," in devices:
        devices = [index for index in devices.split(",") if index.strip()]
    if isinstance(devices, list):
        number = len(devices)
    else:
        number = int(devices) if str(devices).isdecimal() else auto
    return number * (trainer.num_nodes or 1)


def _parameters(network: FlatNetwork) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def rate_of(stage: Stage, gpu: str, *, mfu: float | None, results: Path) -> tuple[float, str]:
    """Operations a second that a device is expected to reach on a stage, and the origin of that figure.

    Args:
        stage: The run.
        gpu: Part of a GPU's name, or `cpu` or `cuda` for the device here.
        mfu: Share of the device's peak; None takes what `make gpu` measured for the nearest case, or `ASSUMED_MFU`.
        results: `speed.json` of `make gpu`; it need not exist.

    Raises:
        ValueError: Nothing is known of the GPU in this precision.
    """
    is_here = gpu in ("cpu", "cuda")
    if gpu == "cuda" and not torch.cuda.is_available():
        raise ValueError("gpu: there is no CUDA here; name a GPU, such as H100")
    peak = peak_flops(torch.device(gpu), stage.precision) if is_here else sheet_rate(gpu, stage.precision)
    if peak is None:
        raise ValueError(f"gpu: no data sheet of {gpu!r} in {stage.precision}; give H100, A100, ..., cuda or cpu")
    named = f"{peak / 1e12:,.3g} TFLOP/s {'measured here' if is_here else f'by the data sheet of {gpu}'}"
    if mfu is None and results.is_file():
        try:
            measured = json.loads(results.read_text(encoding="utf-8"))
            every = [row for row in measured["rows"] if row["ours"]["mfu"]]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"results: {results} is not what make gpu writes") from None
        rows = [row for row in every if row["case"].startswith(f"{stage.kind}-base")]
        rows = [row for row in rows if ("→" in row["case"]) == stage.distils] or rows
        if rows:
            nearest = min(rows, key=lambda row: abs(int(row["case"].split(", ")[-2]) - stage.length))
            on = measured["hardware"]["device"]
            return peak * nearest["ours"]["mfu"], (
                f"{named}, of which {100 * nearest['ours']['mfu']:.0f} % were measured on {on} ({nearest['case']})"
            )
    share = mfu or ASSUMED_MFU
    return peak * share, f"{named}, of which {100 * share:.0f} % are {'as given' if mfu else 'assumed'}"


def run(arguments: list[str]) -> None:
    """`lit-distil benchmark estimate`: parse the options, and print a table.

    Raises:
        ValueError: An option is wrong.
    """
    options, settings = _parser().parse_known_args(arguments)
    check_at_least(1, {"devices": options.devices})
    if options.mfu is not None and not 0 < options.mfu <= 1:
        raise ValueError(f"mfu must lie in (0, 1], got {options.mfu}")
    if Path(options.results).is_dir():
        raise ValueError(f"results: {options.results!r} is a folder; give the speed.json that make gpu writes")
    commands = [["fit", *settings]]
    if options.commands is not None:
        if settings:
            raise ValueError(f"commands: give them or the options of a run, not both ({settings[0]})")
        try:
            text = sys.stdin.read() if options.commands == "-" else Path(options.commands).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"commands: {options.commands} cannot be read ({error.strerror})") from None
        lines = [shlex.split(line) for line in text.splitlines() if line.startswith("lit-distil ")]
        print(text.rstrip(), end="\n\n")
        commands = [words[1:] for words in lines]
    chain, stages = Chain(options.devices), []
    for _, group in groupby(commands, key=_without_seed):
        same = list(group)
        if (stage := chain.read(same[0])) is not None:
            stages.append((stage, len(same)))
    print(report(stages, options.gpu, list(chain.notes), mfu=options.mfu, results=Path(options.results)))


def _without_seed(words: list[str]) -> list[str]:
    """A command without the options that differ between seeds, so that it is read only once."""
    changing = ("--seed_everything", "--trainer.default_root_dir", "--ckpt_path", "--overwrite")
    return [
        word for before, word in zip(["", *words], words, strict=False) if not {before, word}.intersection(changing)
    ]


def report(
    stages: Sequence[tuple[Stage, int]], gpu: str, notes: Sequence[str], *, mfu: float | None, results: Path
) -> str:
    """The table of stages, each with its number of runs, and the assumptions. See `rate_of` for other arguments."""
    header = ["run", "parameters", "FLOPs/token", "tokens/step", "steps", "tokens", "devices", "GB each", "hours"]
    table, hours, said = [header], 0.0, dict[str, None]()
    for stage, count in stages:
        rate, origin = rate_of(stage, gpu, mfu=mfu, results=results)
        own = count * stage.seconds(rate) / 3600
        hours, said = hours + own, said | {origin: None}
        name = stage.folder if count == 1 else f"{stage.folder} and {count - 1} more seeds"
        cells = [f"{stage.parameters / 1e6:,.1f} M", f"{stage.flops / stage.tokens / 1e9:.3g} G", f"{stage.tokens:,}"]
        cells += [f"{stage.steps:,}", f"{stage.steps * stage.tokens / 1e9:,.3f} G", str(stage.devices)]
        table.append([name, *cells, f"{stage.memory / 1e9:.1f}", _three_digits(own)])
    lines = [
        f"{_three_digits(hours)} hours in all, one run after the other; without start-up, validation and checkpoints",
        *(f"operations: {origin}" for origin in said),
        f"a micro-batch takes at least {1000 * LEAST_SECONDS:.0f} ms; every sequence counts as full, so that tasks of "
        "short rows and their memory are upper bounds",
        "memory: 16 bytes a trained parameter (fp32 with Adam), 4 a teacher's, 2 more for the copies of bf16, 2 in all "
        f"for a teacher in bfloat16; for the backward pass {KEPT_BYTES['half']} bytes a token, layer and unit of width "
        f"({KEPT_BYTES['fp32']} in fp32, "
        f"{INPUT_BYTES} where model.activation_checkpointing computes them again), without attention's scores; and the "
        "logits of one piece",
        *notes,
    ]
    sizes = [["run", *(f"on {gigabytes} GB" for gigabytes in GIGABYTES), "now"]]
    sizes += [
        [stage.folder, *(f"{stage.largest(each):,}" for each in GIGABYTES), f"{stage.micro_tokens:,.0f}"]
        for stage, _ in stages
    ]
    largest = f"The largest micro-batch of a device, in tokens, with a tenth of its memory left:\n{text_table(sizes)}"
    return f"{text_table(table)}\n{bullets(lines)}\n\n{largest}"


def _three_digits(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="lit-distil benchmark estimate",
        description="Estimate the hours and the memory of a run of `fit`, all of whose options may follow, or of many "
        "commands. Nothing is trained or fetched.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--commands", metavar="FILE", help="lines that begin with lit-distil, in their order; - reads them")
    add("--gpu", default="H100", help="part of a GPU's name, or cuda or cpu to measure what is here (H100)")
    add("--devices", type=int, default=1, help="what `devices: auto` of a recipe means (1)")
    add("--mfu", type=float, help=f"share of the device's rate (as measured by make gpu, or {ASSUMED_MFU})")
    add("--results", default=RESULTS, help=f"what make gpu measured ({RESULTS})")
    return parser
