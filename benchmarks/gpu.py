"""What this package does on a CUDA GPU: the tests that need one, then how fast it trains beside transformers' Trainer.

    python benchmarks/gpu.py                   # both halves, eight minutes at most
    python benchmarks/gpu.py --half tests      # four
    python benchmarks/gpu.py --half table      # four
    python benchmarks/gpu.py --dry_run         # the table with tiny networks on a CPU, to try the script

It needs torch, transformers and what `lit_distil` imports, and neither network nor set-up. Text is made up, with the
frequencies of words and the lengths of sentences of English; it goes through the data module like any other. Each
half ends at its limit, with what it has by then in `results/gpu`.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

BEGIN = monotonic()  # importing counts, too
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from lightning.pytorch import Trainer  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast  # noqa: E402

from lit_distil.commands.benchmark import peers  # noqa: E402
from lit_distil.commands.benchmark.latency import describe_hardware  # noqa: E402
from lit_distil.commands.benchmark.training import PROFILED_STEPS, Prepare, Stopwatch  # noqa: E402
from lit_distil.console import Table, markdown_table  # noqa: E402
from lit_distil.data import FullSentences, InMemory, LinePerSequence, TextDataModule, TokenMasking  # noqa: E402
from lit_distil.models import EveryOther, FromConfig  # noqa: E402
from lit_distil.models.flops import data_sheet, product_rate  # noqa: E402
from lit_distil.modules import DistillationModule, MaskedLMModule  # noqa: E402
from lit_distil.objectives import HiddenCosineLoss, MaskedLMLoss, SoftTargetLoss  # noqa: E402
from lit_distil.optim import LinearSchedule  # noqa: E402

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TIMING = {"warm_up_steps": 4, "steps": 10}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        model_type: Architecture, at the size of its base model.
        length: Most tokens of a sequence.
        packed: Whether sequences are filled to that length; otherwise they are natural sentences or paragraphs.
        distils: Positions at which soft targets are compared with a teacher twice as deep; None pretrains.
        vocabulary: Entries of the tokenizer.
        aim: Tokens a second on an H200.
    """

    model_type: str
    length: int
    packed: bool
    distils: str | None = None
    vocabulary: int = 30_522
    aim: int | None = None

    def __str__(self) -> str:
        what = f"{self.model_type}-base" + (f" → 6 layers, {self.distils} positions" if self.distils else " MLM")
        return f"{what}, {self.length}, {'packed' if self.packed else 'natural'}"


CASES = [
    Case("bert", 128, packed=True, aim=800_000),
    Case("bert", 128, packed=False, aim=800_000),
    Case("bert", 512, packed=True, aim=800_000),
    Case("bert", 512, packed=False, aim=800_000),
    Case("bert", 128, packed=False, distils="all", aim=700_000),
    Case("bert", 128, packed=False, distils="masked", aim=1_000_000),
    Case("roberta", 512, packed=True, vocabulary=50_265),
    Case("modernbert", 512, packed=True, vocabulary=50_368),
]


class TimeUpError(Exception):
    """The half has had its time."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUpError` in the block once the time is up, whatever it does."""

    def stop(*_: Any) -> None:
        raise TimeUpError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Data and networks


def make_tokenizer(num_entries: int) -> PreTrainedTokenizerFast:
    """Words as tokens: w0 is the most frequent."""
    entries = [*SPECIAL, *(f"w{n}" for n in range(num_entries - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({entry: n for n, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=8192, **names)


def make_texts(num_tokens: int, length: int, num_entries: int) -> list[str]:
    """Documents of twenty lines; a line has a third of `length` words in the middle, and fits it."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(length / 3), 0.6, 4 * num_tokens // length + 20), 3, length - 2).astype(int)
    words = np.minimum(rng.zipf(1.2, lengths.sum()), num_entries - len(SPECIAL) - 1)
    lines = [" ".join(f"w{n}" for n in line) for line in np.split(words, np.cumsum(lengths)[:-1])]
    return ["\n".join(lines[n : n + 20]) for n in range(0, len(lines), 20)]


def make_data(case: Case, tokens_per_step: int, folder: Path) -> TextDataModule:
    """The data module, with steps of as many tokens whatever the lengths."""
    num_steps = sum(TIMING.values()) + PROFILED_STEPS + 2
    return TextDataModule(
        make_tokenizer(case.vocabulary),
        InMemory(make_texts(num_steps * tokens_per_step, case.length, case.vocabulary)),
        format=FullSentences() if case.packed else LinePerSequence(),
        masking=TokenMasking(rate=0.15),
        max_length=case.length,
        batch_tokens=tokens_per_step,
        num_workers=0 if tokens_per_step < 4096 else 2,
        validation_share=0.0,
        cache_dir=str(folder / "cache"),
        seed=1,
    )


def make_module(case: Case, *, is_tiny: bool) -> Any:
    """The module, with dropout as the architecture's authors have it."""
    sizes: dict[str, Any] = {"max_position_embeddings": case.length + 2, **(TINY if is_tiny else {})}
    settings = {"optimizer": partial(torch.optim.AdamW, lr=1e-4, fused=True), "schedule": LinearSchedule(warmup=0.1)}
    if case.distils is None:
        return MaskedLMModule(FromConfig(case.model_type, config=sizes), **settings)
    config = AutoConfig.for_model(case.model_type, vocab_size=case.vocabulary, pad_token_id=0, **sizes)
    objectives = {
        "soft": SoftTargetLoss(2.0, positions=case.distils, weight=5.0),  # type: ignore[arg-type]
        "masked_lm": MaskedLMLoss(weight=2.0),
        "cosine": HiddenCosineLoss(weight=1.0, positions="all"),
    }
    teacher = AutoModelForMaskedLM.from_config(config)
    return DistillationModule(teacher, EveryOther(), objectives, gradient_shares_every=0, **settings)


def measure(case: Case, tokens_per_step: int, *, is_tiny: bool) -> dict[str, Any]:
    """Train some steps here and with the peer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(1)
        callbacks = [Prepare(name, **TIMING, goes_on=True), Stopwatch(str(folder / "ours.json"), **TIMING)]
        trainer = Trainer(
            accelerator="cpu" if is_tiny else "gpu",
            devices=1,
            precision="32-true" if is_tiny else "bf16-mixed",
            max_steps=sum(TIMING.values()) + PROFILED_STEPS,
            gradient_clip_val=1.0,
            log_every_n_steps=50,
            callbacks=callbacks,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=name,
        )
        trainer.fit(make_module(case, is_tiny=is_tiny), datamodule=make_data(case, tokens_per_step, folder))
        ours = json.loads((folder / "ours.json").read_text(encoding="utf-8"))
        del trainer
        clear()
        theirs = peers.measure(folder, "same")
        clear()
    row = {"case": str(case), "aim": case.aim, "ours": with_rates(ours, ours), "peer": with_rates(theirs, ours)}
    return {**row, "ratio": row["ours"]["tokens_per_second"] / row["peer"]["tokens_per_second"]}


def with_rates(found: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """What was measured, with tokens a second and MFU."""
    rates = {"tokens_per_second": ours["tokens"] / found["seconds"], "mfu": None}
    if peak := ours["data_sheet"] or ours["product_rate"]:
        rates["mfu"] = ours["flops"] / found["seconds"] / peak
    return {**found, **rates, "first_loss": found["losses"][0]}


def clear() -> None:
    """Give the device's memory back, and count its peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# The two halves


def run_table(out: Path, seconds: float, *, is_tiny: bool) -> dict[str, Any]:
    """Measure case after case while there is time; the files are written after each."""
    end = monotonic() + seconds
    device = torch.device("cpu" if is_tiny else "cuda")
    memory = 0 if is_tiny else torch.cuda.get_device_properties(device).total_memory
    tokens_per_step = 512 if is_tiny else 2 ** int(np.log2(memory / 1e9 * 500))
    precision = "32-true" if is_tiny else "bf16-mixed"
    torch.set_float32_matmul_precision("medium")
    result: dict[str, Any] = {
        "hardware": describe_hardware(threads=torch.get_num_threads(), device=device.type, seed=1),
        "product_rate": product_rate(device, precision),
        "data_sheet": data_sheet(device, precision),
        "tokens_per_step": tokens_per_step,
        "rows": [],
        "left_out": {},
    }
    cases = [Case(c.model_type, 24, c.packed, c.distils, vocabulary=120) for c in CASES] if is_tiny else CASES
    for case in cases:
        try:
            with limit(end - monotonic()):
                result["rows"].append(measure(case, tokens_per_step, is_tiny=is_tiny))
        except TimeUpError:
            result["left_out"][str(case)] = "the time was up"
        except Exception as error:  # a case that fails is a finding, and the next one may do
            result["left_out"][str(case)] = f"{type(error).__name__}: {error}".split("\n")[0]
        clear()
        write(out, "speed", result, [markdown_table(table_of(result)), *left_out(result)])
        print(case, result["left_out"].get(str(case), "done"), flush=True)
    return result


def table_of(result: dict[str, Any]) -> Table:
    """A row for each case."""
    header = ["network, length, text", "tokens/s", "aim (H200)", "MFU", "GB", "data", "Trainer tokens/s", "ours is"]
    rows = [header]
    for row in result["rows"]:
        ours, peer = row["ours"], row["peer"]
        rows.append(
            [
                row["case"],
                f"{ours['tokens_per_second']:,.0f}",
                "–" if row["aim"] is None else f"{row['aim']:,}",
                f"{100 * ours['mfu']:.0f} %",
                f"{ours['peak_memory'] / 1e9:.1f}",
                f"{100 * ours['phases']['data']:.1f} %",
                f"{peer['tokens_per_second']:,.0f}",
                f"{row['ratio']:.2f} times",
            ]
        )
    return rows


def left_out(result: dict[str, Any]) -> list[str]:
    """What has no row, and why."""
    return [f"{case}: left out, {reason}" for case, reason in result["left_out"].items()]


def run_tests(out: Path, seconds: float) -> dict[str, Any]:
    """Run the tests marked `gpu`; those that the time does not allow are missing from the file."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rs", "--color=no", str(ROOT / "tests" / "gpu")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=seconds)
        is_whole = True
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        is_whole = False
    outcomes = dict(re.findall(r"^(\S+::.+) (PASSED|FAILED|SKIPPED|ERROR)", said, re.M))
    result = {"hardware": describe_hardware(threads=torch.get_num_threads(), device=device_type(), seed=1)}
    result |= {"ended_in_time": is_whole, "exit_status": process.returncode, "outcomes": outcomes}
    write(out, "tests", result, ["```", said.strip(), "```"])
    print(said)
    return result


def device_type() -> str:
    """`cuda` if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def write(out: Path, name: str, result: dict[str, Any], lines: list[str]) -> None:
    """Write `<name>.json` and `<name>.md`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    hardware = ", ".join(f"{key}: {value}" for key, value in result["hardware"].items() if value is not None)
    (out / f"{name}.md").write_text("\n\n".join([hardware, *lines]) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the halves; 0 if all went well, 1 if a test or a case failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description="The tests marked gpu, and a table of training speed.")
    parser.add_argument("--half", choices=["tests", "table"], help="one of the two alone")
    parser.add_argument("--minutes", type=float, default=4.0, help="limit of a half (4)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu", help="where to write (results/gpu)")
    parser.add_argument("--dry_run", action="store_true", help="the table alone, with tiny networks on the CPU")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no CUDA GPU here, so nothing was run; --dry_run tries the script")
        return 2
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    is_well, end = True, BEGIN + 60 * options.minutes - 5
    if options.half != "table" and not options.dry_run:
        is_well &= run_tests(options.out, end - monotonic())["exit_status"] == 0
        end = monotonic() + 60 * options.minutes - 5
    if options.half != "tests":
        result = run_table(options.out, end - monotonic(), is_tiny=options.dry_run)
        is_well &= not result["left_out"]
        print("\n".join([markdown_table(table_of(result)), *left_out(result)]))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
