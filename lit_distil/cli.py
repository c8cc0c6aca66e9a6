"""The command line. Nothing heavy is imported before a command is chosen, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import types
from pathlib import Path

TRAINER_COMMANDS = {
    "fit": "train: pretraining, distillation or fine-tuning, whichever the config says",
    "validate": "evaluate a checkpoint or a pretrained network on the validation split",
    "test": "evaluate it on the test split",
    "predict": "write predictions for the predict split (or else test, or else validation)",
}
CALLS = {
    "pretrain": "pretrain an encoder on your text: lit-distil pretrain corpus.txt --out runs/teacher",
    "distil": "distil a model into one of half its layers: lit-distil distil NAME corpus.txt --out runs/student",
    "finetune": "fine-tune on your table: lit-distil finetune runs/student reviews.csv --text review --out runs/task",
}
OTHER_COMMANDS = {
    "recipes": "list the complete configurations that come with the package, or print one",
    "tokenizer": "train a tokenizer on a source of text",
    "prepare": "turn a source of text into shards of tokens, once for many runs",
    "inspect": "show batches of a configuration: tokens, masks, segments, labels; in the terminal and as a page",
    "student": "make a student out of its teacher, and say where each of its tensors came from",
    "cache": "run a teacher once over the data, and keep its likeliest tokens for distillation without it",
    "export": "turn a checkpoint into a folder that plain transformers loads",
    "fill-mask": "what masked language models put in the place of [MASK], side by side",
    "score": "sentences or minimal pairs (BLiMP) by pseudo-log-likelihood, side by side",
    "diagnose": "confusion matrix, reliability and worst examples of a file of predictions",
    "seeds": "a configuration under several seeds: median and spread of each metric",
    "spread": "a metric of finished runs that differ in their seed: median, spread, and the gap between kinds",
    "glue": "fine-tune a network on the tasks of GLUE, beside the papers' figures",
    "report": "measure exported networks side by side; write a table and a picture",
    "benchmark": "parameters, size, latency and throughput of exported networks",
    "budget": "how many steps one run can do in another's time, for controls at equal time",
}
HELP = """\
usage: lit-distil <command> [--config FILE ...] [--key value ...]

Pretrain a BERT-family encoder, distil it into a smaller one, fine-tune either.

commands that train and evaluate (each takes one or more YAML files; later ones win, the command line over all):
{trainer}

other commands:
{other}

  lit-distil <command> --help          every option of a command, with its type and default
  lit-distil fit --print_config ...    the whole configuration as it would be used

examples:
  lit-distil fit --config configs/pretrain/roberta-small.yaml
  lit-distil fit --config configs/distill/distilroberta.yaml --config configs/trainer/ddp.yaml --trainer.devices 4
  lit-distil fit --config configs/pretrain/roberta-small.yaml --data.masking lit_distil.data.WholeWordMasking

Set LIT_DISTIL_TRACEBACK=1 to see where in the code an error arose.
"""


def main(argv: list[str] | None = None) -> None:
    """Run a command; a mistake in the configuration ends in one message and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return
    command = arguments[0]
    if command == "--version":
        from lit_distil import __version__

        print(f"lit-distil {__version__}")
        return
    if command not in TRAINER_COMMANDS and command not in OTHER_COMMANDS:
        _fail(f"no command {command!r}{_nearest(command)}; `lit-distil --help` lists them")
    try:
        if command in TRAINER_COMMANDS:
            importlib.import_module("lit_distil.run").run(arguments)
        else:
            command_module(command).run(arguments[1:])
    except Exception as error:
        message = _message(error)
        if os.environ.get("LIT_DISTIL_TRACEBACK") or message is None:
            raise
        _fail(message)


def command_module(command: str) -> types.ModuleType:
    """The module that holds a command's `run`: a file of `commands`, or `command.py` in a folder of it."""
    name = command.replace("-", "_")
    is_folder = Path(__file__).with_name("commands").joinpath(name).is_dir()
    return importlib.import_module(f"lit_distil.commands.{name}" + (".command" if is_folder else ""))


def _help() -> str:
    def table(commands: dict[str, str]) -> str:
        return "\n".join(f"  {name:<10} {text}" for name, text in commands.items())

    return HELP.format(trainer=table(TRAINER_COMMANDS), other=table(OTHER_COMMANDS))


def _nearest(command: str) -> str:
    import difflib

    near = difflib.get_close_matches(command, [*TRAINER_COMMANDS, *OTHER_COMMANDS], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _message(error: BaseException) -> str | None:
    """What the error says, if it is a mistake of the user's that somebody has put into words; otherwise None.

    The parser wraps what a class's constructor raises, once for each level of the configuration: the outermost error
    that this package raised itself is the one to tell.
    """
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, (ValueError, OSError)) and _is_ours(reason):
            return str(reason)
        reason = reason.__cause__
    return str(error) if type(error).__name__ == "MisconfigurationException" else None  # Lightning's own checks


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by this package's own checks, whose messages stand for themselves."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)


def _fail(message: str) -> None:
    print(f"lit-distil: error: {message}", file=sys.stderr)
    sys.exit(2)
