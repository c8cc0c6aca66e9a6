"""The command line. Nothing heavy is imported before a command is chosen, so that `--help` is instant."""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import types
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

CALLS = {
    "pretrain": "pretrain an encoder on text",
    "distil": "distil a masked language model or a sentence encoder into a smaller one",
    "finetune": "fine-tune an encoder on labelled rows",
}
TRAINER_COMMANDS = {
    "fit": "train: pretraining, distillation or fine-tuning, whichever the config says",
    "validate": "evaluate a checkpoint or a pretrained network on the validation split",
    "test": "evaluate it on the test split",
    "predict": "write predictions for the predict split, or where there is none, for test or validation",
}
OTHER_COMMANDS = {
    "recipes": "list the configurations that come with the package, or print one",
    "tokenizer": "train a tokenizer on a source of text",
    "vocabulary": "trim a network's vocabulary to what a text needs, or add words to it",
    "prepare": "turn a source of text into shards of tokens, once for many runs",
    "inspect": "show batches of a configuration: tokens, masks, segments, labels; in the terminal and as a page",
    "student": "make a student out of its teacher, and say where each of its tensors came from",
    "cache": "run a teacher once over the data, and keep its most likely tokens for distillation without it",
    "export": "turn a checkpoint into a folder that plain transformers loads",
    "fill-mask": "what masked language models put in the place of [MASK], side by side",
    "score": "sentences or minimal pairs (BLiMP) by pseudo-log-likelihood, side by side",
    "embeddings": "sentence encoders side by side: similarity of pairs, retrieval, agreement with the teacher",
    "diagnose": "confusion matrix, reliability and worst examples of a file of predictions",
    "report": "finished runs side by side: tables with intervals, pictures, and what each run changed",
    "claims": "the papers' claims as experiments on small networks: run them, judge them, write their pages",
    "benchmark": "how fast a configuration trains (training) or would (estimate); size and speed of exported networks",
}
COMMANDS = {**CALLS, **TRAINER_COMMANDS, **OTHER_COMMANDS}
HELP = """\
usage: lit-distil <command> ...

Pretrain a BERT-family encoder, distil it into a smaller one, fine-tune either.

commands with a recipe of their own (the same as lit_distil.pretrain(...) and its like in Python):
{calls}

commands that take one or more YAML files (later ones win, the command line over all):
{trainer}

other commands:
{other}

  lit-distil <command> --help          every option of a command, with its type and default
  lit-distil fit --print_config ...    the whole configuration as it would be used
  --imports my_module                  with any command: import your own module first
  --trust NAME                         with any command: let configurations name classes of this package, too
  --trust_remote_code                  with any command: run the code that the folder of a network brings

examples:
  lit-distil distil FacebookAI/roberta-base corpus.txt --out runs/student
  lit-distil finetune runs/student reviews.csv --text review --label stars --out runs/reviews
  lit-distil fit --config recipe:distilroberta --config recipe:trainer/ddp --trainer.devices 4
  lit-distil fit --config recipe:roberta-small --data.masking lit_distil.data.WholeWordMasking

Set LIT_DISTIL_TRACEBACK=1 to see where in the code an error arose.
"""
CALL_HELP = """
CLASS is the path of a class, yours or one of these:
{classes}
What it takes follows, as in
  --optimizer torch.optim.SGD --model.optimizer.lr 0.1 --model.optimizer.momentum 0.9
Every option of `lit-distil fit` may follow and wins over the recipe, for example
  --trainer.devices 2  --model.objectives.soft.temperature 4  --data.masking lit_distil.data.SpanMasking
The same command again continues an interrupted run; the recipe is kept as config.yaml in the run's folder.

examples:
"""
EXAMPLES = {
    "pretrain": """\
  lit-distil pretrain corpus.txt --out runs/teacher
  lit-distil pretrain 'texts/*.jsonl' --text_column body --network FacebookAI/roberta-base --out runs/adapted
""",
    "distil": """\
  lit-distil distil FacebookAI/roberta-base corpus.txt --out runs/student
  lit-distil distil runs/teacher corpus.txt --student lit_distil.models.FirstLayers --model.student.num_layers 2 \\
    --out runs/student
  lit-distil distil sentence-transformers/all-MiniLM-L6-v2 texts.txt --kind embedding --out runs/encoder
""",
    "finetune": """\
  lit-distil finetune runs/student reviews.csv --text review --label stars --out runs/reviews
  lit-distil finetune runs/student pairs.jsonl --task lit_distil.tasks.TextRegression --label score --out runs/pairs
""",
}
_OVERRIDES = ("--model.", "--data.", "--trainer.", "--config", "-c", "--matmul_precision")
_ONLY_IN_PYTHON = ("objectives", "callbacks", "trainer", "overrides", "trust", "trust_remote_code")
_FROM_RECIPES = "recipe:"
_NEEDED = {"torch", "lightning", "transformers", "tokenizers", "safetensors", "torchmetrics", "datasets", "numpy"}
_NEEDED |= {"jsonargparse", "typeshed_client", "docstring_parser", "numba", "joblib", "matplotlib", "tqdm", "yaml"}
_FORMAT_OF_OTHERS = warnings.formatwarning


def main(argv: list[str] | None = None) -> None:
    """Run a command; a mistake in the configuration prints one message and exits with status 2."""
    if argv is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a command at once; training handles it itself
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return
    command = arguments[0]
    if command == "--version":
        from lit_distil import __version__

        print(f"lit-distil {__version__}")
        return
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        _fail(f"no command {command!r}{hint}; there are {', '.join(COMMANDS)}")
    warnings.formatwarning = _format_warning
    try:
        if arguments[:2] == ["benchmark", "training"]:  # it starts `fit`, which parses its own options
            command_module(command).run(arguments[1:])
            return
        arguments = [_recipe_path(argument) for argument in arguments[1:]]
        trusted, arguments = named_modules("--trust", arguments)
        runs_remote_code = "--trust_remote_code" in arguments
        arguments = [argument for argument in arguments if argument != "--trust_remote_code"]
        trust = importlib.import_module("lit_distil.trust")
        with trust.guard(trusted, remote_code=runs_remote_code):
            _run(command, arguments)
        sys.stdout.flush()
    except (Exception, SystemExit) as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            sys.exit(141)  # 128 + SIGPIPE, as for any command that `head` ends
        if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in _NEEDED:
            _fail(f"the package {error.name!r} is not installed here; `pip install -e .` in the repository brings it")
        pieces = importlib.import_module("lit_distil.pieces")
        message = pieces.users_mistake(error) or pieces.piece_that_raised(error)
        if message is None or (os.environ.get("LIT_DISTIL_TRACEBACK") and isinstance(error, Exception)):
            raise
        _fail(message)


def _has_no_reader() -> bool:
    """Whether the reader of stdout, such as `head`, has closed it; further output is then dropped."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    has_left = any(events & select.POLLERR for _, events in poll.poll(0))
    if has_left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return has_left


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format warnings of this package for users, without the place in the code."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"warning: {message}\n"
    return _FORMAT_OF_OTHERS(message, category, filename, lineno, line)


def _run(command: str, arguments: list[str]) -> None:
    imports, arguments = named_modules("--imports", arguments)
    if imports:
        importlib.import_module("lit_distil.trust").import_modules(imports)
    if imports and (command in CALLS or command in TRAINER_COMMANDS or command == "inspect"):
        arguments.append(f"--imports=[{','.join(imports)}]")  # to be stored in the run's config.yaml
    if command in TRAINER_COMMANDS:
        importlib.import_module("lit_distil.run").run([command, *arguments])
    elif command in CALLS:
        _call(command, arguments)
    else:
        module = command_module(command)
        if "transformers" in sys.modules:  # loading weights needs no progress bar
            importlib.import_module("transformers.utils.logging").disable_progress_bar()
        module.run(arguments if command == "inspect" else _with_values(arguments))


def command_module(command: str) -> types.ModuleType:
    """The module with a command's `run`: a file in `commands`, or `command.py` in a folder there."""
    name = command.replace("-", "_")
    is_folder = Path(__file__).with_name("commands").joinpath(name).is_dir()
    return importlib.import_module(f"lit_distil.commands.{name}" + (".command" if is_folder else ""))


def call_parser(command: str) -> Any:
    """The parser of a call: those arguments of the `lit_distil.api` function that can be given on a command line."""
    import argparse
    import inspect

    import docstring_parser

    api = importlib.import_module("lit_distil.api")
    function = getattr(api, command)
    described = {  # arguments that the calls share are described in distil
        argument.arg_name: argument.description
        for each in (api.distil, function)
        for argument in docstring_parser.parse(each.__doc__).params
    }

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(message.removeprefix("argument "))

    parameters = inspect.signature(function).parameters
    pieces = [name for name, one in parameters.items() if "Piece" in one.annotation and name not in _ONLY_IN_PYTHON]
    classes = {name: _classes_for(api, parameters[name].annotation) for name in pieces if name != "network"}
    lines = [f"  --{name:<9} {paths}" for name, paths in classes.items()]
    parser = Parser(
        prog=f"lit-distil {command}",
        description=function.__doc__.split("\n")[0],
        epilog=CALL_HELP.format(classes="\n".join(lines)) + EXAMPLES[command],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, parameter in parameters.items():
        if name in _ONLY_IN_PYTHON:
            continue
        text = " ".join((described.get(name) or "").split()).replace("%", "%%")
        kind = next((one for one in (int, float) if parameter.annotation.startswith(one.__name__)), str)
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            parser.add_argument(name, help=text)
        elif parameter.annotation == "bool":
            parser.add_argument(f"--{name}", action="store_true", help=text)
        elif parameter.default is parameter.empty:
            parser.add_argument(f"--{name}", required=True, help=text)
        else:
            text += "" if parameter.default is None else f" (default: {parameter.default})"
            value = "CLASS" if name in classes else kind.__name__
            parser.add_argument(f"--{name}", type=kind, default=parameter.default, metavar=value, help=text)
    return parser


def _classes_for(api: types.ModuleType, annotation: str) -> str:
    """The classes that an argument accepts, from its annotation: `lit_distil.data: A, B, ...`."""
    import inspect
    import textwrap

    optimizer = api.torch.optim.Optimizer
    kinds = [optimizer if "Callable" in name else getattr(api, name.strip()) for name in annotation.split("|")]
    found: dict[str, list[str]] = {}
    for one in {piece for kind in kinds for piece in _with_subclasses(kind)} - {optimizer}:
        room = ".".join(one.__module__.split(".")[:2])
        is_public = room.startswith(("lit_distil.", "torch.optim")) and hasattr(sys.modules[room], one.__name__)
        if is_public and not inspect.isabstract(one):
            found.setdefault(room, []).append(one.__name__)
    text = "; ".join(f"{room}: {', '.join(sorted(names))}" for room, names in sorted(found.items()))
    return textwrap.fill(text, 100, subsequent_indent=" " * 14)


def _with_subclasses(kind: Any) -> set[Any]:
    subclasses: list[Any] = kind.__subclasses__()
    return {kind}.union(*map(_with_subclasses, subclasses))


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments of a call into its own and options of `fit`."""
    own: list[str] = []
    overrides: list[str] = []
    lacks_value = False
    for argument in arguments:
        is_override = argument.startswith((*_OVERRIDES, "--imports"))
        is_value = lacks_value and not argument.startswith("--")
        (overrides if is_override or is_value else own).append(argument)
        lacks_value = is_override and "=" not in argument
    return own, overrides


def _call(command: str, arguments: list[str]) -> None:
    own, overrides = split_overrides(arguments)
    parser = call_parser(command)
    options = sorted(name for name in parser._option_string_actions if name.startswith("--"))
    _check_options(own, options)
    settings = vars(parser.parse_args(own))
    with suppress(ValueError):  # not a share, so it names a file
        settings["validation"] = float(settings["validation"])
    try:
        run = getattr(importlib.import_module("lit_distil.api"), command)(**settings, overrides=overrides)
    except ValueError as error:
        option = "--" + (importlib.import_module("lit_distil.pieces").users_mistake(error) or "")
        if option.split(" ")[0].rstrip(":") not in options:
            raise
        raise ValueError(option) from error  # the argument that the message begins with is an option here
    importlib.import_module("lightning.pytorch.utilities").rank_zero_only(_print_result)(run)


def _check_options(arguments: list[str], options: list[str]) -> None:
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in options:
            import difflib

            near = difflib.get_close_matches(name.replace("-", "_").replace("__", "--", 1), options, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"no option {name}{hint} (there are {', '.join(options)}, and of fit --model.*, --data.*, --trainer.*)"
            )


def _print_result(run: Any) -> None:
    from lit_distil.console import metrics_table

    print(metrics_table(run.metrics, "val"))
    print(f"the network is in {run.folder / 'export'}")


def named_modules(option: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The modules given to `--imports` or `--trust` (`my_arch`, `a,b` or `[a, b]`), and the other arguments."""
    names: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument != option and not argument.startswith(f"{option}="):
            others.append(argument)
            continue
        value = argument.partition("=")[2] or next(rest, "--")
        if value.startswith("--"):
            raise ValueError(f"{option}: give the names of modules, such as {option} my_arch")
        names += [name.strip(" '\"") for name in value.strip("[]").split(",") if name.strip()]
    return names, others


def _recipe_path(argument: str) -> str:
    """Replace `recipe:NAME` by the recipe's file."""
    start, found, name = argument.partition(_FROM_RECIPES)
    if not found or start not in ("", "--config="):
        return argument
    return start + str(command_module("recipes").find_recipe(name))


def _with_values(arguments: list[str]) -> list[str]:
    """Turn `--overwrite` into `--overwrite=true`, because these commands' parsers need a value for every option."""
    is_bare = [argument in ("--overwrite", "--allow_disagreement") for argument in arguments]
    for place, following in enumerate(arguments[1:]):
        is_bare[place] &= following.startswith("-")
    return [f"{argument}=true" if bare else argument for argument, bare in zip(arguments, is_bare)]


def _help() -> str:
    def table(commands: dict[str, str]) -> str:
        return "\n".join(f"  {name:<10} {text}" for name, text in commands.items())

    return HELP.format(calls=table(CALLS), trainer=table(TRAINER_COMMANDS), other=table(OTHER_COMMANDS))


def _fail(message: str) -> None:
    print(f"lit-distil: error: {message}", file=sys.stderr)
    sys.exit(2)
