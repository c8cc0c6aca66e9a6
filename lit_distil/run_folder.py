"""The folder of a run: whether a run may write to it, and whether its settings continue the run that is there.

`fit` and the calls of `lit_distil.api` check this before they touch anything in the folder.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lit_distil.console import text_table
from lit_distil.files import (
    NETWORK_FILES,
    Difference,
    check_writable,
    differences,
    foreign_files,
    only_process,
)

RUN_FILES: dict[str, tuple[str, ...]] = {
    "metrics.csv": (),
    "predictions.jsonl": (),
    "confusion.json": (),
    "jackknife.json": (),
    "checkpoints": ("*.ckpt", "*.ckpt/", "*.sha256"),
    "export": NETWORK_FILES,
    "tensorboard": ("events.out.tfevents.*", "hparams.yaml", "checkpoints/"),
    "tokenizer": NETWORK_FILES,
    "config.yaml": (),
}
"""Names that a run writes in its folder, and the patterns of files in each subfolder. Removed in this order."""

SETTINGS_KEY = "run_settings"
"""The key of a checkpoint under which the settings of its run are kept as JSON."""

# settings that do not affect what a run computes
_FREE = (
    *("config", "ckpt_path", "imports", "overwrite", "allow_changes"),
    *("trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
)
# Whether a setting may change at a resume. The longest matching pattern decides; a setting that matches none is
# applied as given.
_BREAKING = ("seed_everything", "model*", "data*")
_APPLIED = (
    *("model.optimizer.*", "model.schedule*", "model.layer_decay", "model.max_skipped_steps"),
    *(
        "model.gradient_shares_every",
        "model.evaluate_at_start",
        "model.compile",
        "model.activation_checkpointing",
        "data.eval_batch_size",
        "data.max_eval_sequences",
        "data.eval_masking*",
        "data.num_workers",
        "data.worker_timeout",
        "data.pad_to_multiple_of",
    ),
    *("data.num_processes", "data.cache_dir", "data.verify_corpus"),
)


class RunFinishedError(Exception):
    """The folder holds this run, and it has finished."""


class RunFolder:
    """A folder that a run is about to write to.

    Args:
        path: The folder.
        is_call: Whether a call (`pretrain`, `distil`, `finetune`) writes to it, which continues its own run and needs
            a folder of its own. Otherwise `fit` does, which continues only on request.
    """

    def __init__(self, path: str | Path, *, is_call: bool) -> None:
        self.path, self.is_call = Path(path), is_call
        self.field = "out" if is_call else "trainer.default_root_dir"
        self._to_remove: list[str] = []

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes on this machine from training in the folder within the block.

        Raises:
            ValueError: Another process is training in it.
        """
        if getattr(rank_zero_only, "rank", 0) != 0:
            yield
            return
        message = f"{self.field}: another process is training in {self.path}; wait for it, or give another folder"
        with only_process(self.path, message):
            yield

    def settle(
        self,
        settings: dict[str, Any],
        *,
        overwrite: bool = False,
        checkpoint: str | None = None,
        allow_changes: bool = False,
    ) -> str | None:
        """Decide what to do with the folder. Changes nothing; `clear` removes what must be replaced.

        Args:
            settings: The run's settings in plain values, which a run keeps as `config.yaml`.
            overwrite: Replace an existing run (`RUN_FILES`, nothing else).
            checkpoint: The file to continue from; None starts anew.
            allow_changes: Continue from a checkpoint even if a change of settings breaks the continuation.

        Returns:
            The checkpoint to continue from; None if the run starts anew.

        Raises:
            RunFinishedError: The same call has already finished.
            ValueError: The folder is a file, cannot be created, or holds another run or files that no run wrote; or
                the settings do not continue the checkpoint.
        """
        if getattr(rank_zero_only, "rank", 0) != 0 and overwrite:
            return checkpoint  # the first rank decides, and may already be removing the old run
        check_writable(self.path, self.field)
        if checkpoint is not None:
            is_own = self.path.resolve() in Path(checkpoint).resolve().parents
            if is_own and overwrite:
                raise ValueError(
                    f"overwrite: {checkpoint} belongs to the run that would be removed; give either --ckpt_path or "
                    "--overwrite"
                )
            check_continuation(checkpoint, settings, allow_changes=allow_changes)
            if is_own:
                return checkpoint
        names = {path.name for path in self.path.iterdir() if path.name[0] != "."} if self.path.is_dir() else set()
        kept = saved_config(self.path)
        has_run = kept is not None and (names & {"metrics.csv", "checkpoints", "export"} or _is_written(self.path))
        if not has_run:
            self._refuse_foreign(names, overwrite=overwrite)
        elif overwrite:
            self._to_remove = [name for name in RUN_FILES if self.is_call or name != "tokenizer"]
        elif names & {"metrics.csv", "checkpoints", "export"}:
            checkpoint = self._continue(differences(kept, settings)) or checkpoint
        return checkpoint

    @rank_zero_only
    def clear(self) -> None:
        """Remove what the new run replaces, but no files of others."""
        for name in self._to_remove:
            path = self.path / name
            if path.is_dir():
                _remove_folder(path, RUN_FILES[name])
            else:
                path.unlink(missing_ok=True)
        self._to_remove = []

    def _refuse_foreign(self, names: set[str], *, overwrite: bool) -> None:
        """Refuse files that may be somebody's work: those with a run's names, and in a call's folder any files."""
        in_place = names & {"config.yaml", "metrics.csv", "checkpoints", "export"}
        # a failed start may have left the other two
        foreign = sorted(names - {"tokenizer", "tensorboard"} if self.is_call and not overwrite else in_place)
        if foreign:
            ways_out = "give another folder"
            if self.is_call and not overwrite:
                ways_out += ", or start again with overwrite=True (--overwrite)"
            raise ValueError(
                f"{self.field}: {self.path} is not empty and holds no run ({', '.join(foreign[:5])}); {ways_out}"
            )

    def _continue(self, changes: list[Difference]) -> str | None:
        """The last checkpoint of the same call; raises unless the existing run may be continued or repeated."""
        changes = [change for change in changes if change.name not in _FREE]
        last = last_checkpoint(self.path)
        is_finished = (self.path / "export" / "config.json").is_file()
        has_work = (self.path / "export").exists() or any(
            path for name in ("checkpoints", "tensorboard") for path in (self.path / name).rglob("*.ckpt")
        )
        if not self.is_call and (has_work or changes):
            ways = ["continue it with --ckpt_path last"] if last.exists() else []
            ways += [
                "give another folder with --trainer.default_root_dir",
                "remove it and start again with --overwrite",
            ]
            raise ValueError(
                f"{self.field}: {self.path} holds {'a finished' if is_finished else 'an unfinished'} run; "
                f"{', '.join(ways[:-1])}, or {ways[-1]}"
            )
        if changes:
            first = [(change.name, *change.shown(60)) for change in changes[:3]]
            listed = [f"{name}: {there} there, {now} now" for name, there, now in first]
            more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise ValueError(
                f"out: {self.path} holds another run ({'; '.join(listed)}{more}). To continue that run, repeat its "
                "settings; otherwise give another folder, or start again with overwrite=True (--overwrite)"
            )
        if self.is_call and is_finished:
            raise RunFinishedError(
                f"{self.path}: this run is already finished; its network is in {self.path / 'export'}"
            )
        if self.is_call and last.exists():
            rank_zero_info(f"{self.path}: continuing this run from its last checkpoint")
            return str(last)
        if has_work:
            raise ValueError(
                f"out: {self.path} holds a run without checkpoints/last.ckpt; give another folder, or start again with "
                "overwrite=True (--overwrite)"
            )
        rank_zero_info(f"{self.path}: the run that is there was stopped before its first checkpoint; starting it again")
        self._to_remove = ["metrics.csv", "checkpoints", "tensorboard"]
        return None


def last_checkpoint(run: Path) -> Path:
    """A run's `last.ckpt`, or its newest checkpoint if it was killed before the first `last.ckpt` was written."""
    last = run / "checkpoints" / "last.ckpt"
    others = sorted(last.parent.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return last if last.exists() or not others else others[-1]


def saved_config(folder: Path) -> dict[str, Any] | None:
    """The content of a run's `config.yaml`; None if the folder holds no run."""
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) and {"model", "data", "trainer"} <= content.keys() else None


def check_continuation(checkpoint: str, settings: dict[str, Any], *, allow_changes: bool) -> None:
    """Print differences from the settings of a checkpoint's run, and refuse those that break the continuation.

    Compares with the settings in the checkpoint, or without them with the `config.yaml` beside its folder.

    Raises:
        ValueError: A change breaks the continuation, and `allow_changes` is not set.
    """
    then = _settings_in(Path(checkpoint)) or saved_config(Path(checkpoint).parent.parent)
    if then is None:
        return
    changes = [change for change in differences(then, settings) if change.name not in _FREE]
    breaking = [change.name for change in changes if breaks_continuation(change.name)]
    rows = [
        [change.name, *change.shown(60), "breaks the continuation" if change.name in breaking else "applied"]
        for change in changes
    ]
    if rows:
        table = text_table([["setting", "in the checkpoint", "now", ""], *rows], numbers=False)
        rank_zero_info(f"{checkpoint}: these settings have changed\n{table}")
    if "model.optimizer" in breaking:
        raise ValueError(
            f"ckpt_path: the run in {checkpoint} had an optimizer of another class, whose state this one cannot take "
            "over; repeat model.optimizer, or begin a new run from the export (model.network)"
        )
    if breaking and not allow_changes:
        raise ValueError(
            f"ckpt_path: the run in {checkpoint} had other settings ({', '.join(breaking)}), so that it would not be "
            "continued but become another run; repeat its settings, or add --allow_changes to go on from its weights"
        )


def breaks_continuation(name: str) -> bool:
    """Whether changing this setting at a resume, such as `data.batch_size`, would make it another run."""

    def longest(patterns: tuple[str, ...]) -> int:
        return max((len(pattern) for pattern in patterns if fnmatch(name, pattern)), default=0)

    return longest(_BREAKING) > longest(_APPLIED)


def _settings_in(checkpoint: Path) -> dict[str, Any] | None:
    """The settings stored in a checkpoint; None if it has none or cannot be read."""
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    try:
        text = torch.load(file, map_location="cpu", weights_only=True, mmap=True).get(SETTINGS_KEY)
        return None if text is None else json.loads(text)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ValueError):
        return None  # loading it will report the error


def _is_written(folder: Path) -> bool:
    """Whether a run wrote the folder's `config.yaml`, not a person who wants to train there."""
    with (folder / "config.yaml").open(encoding="utf-8") as file:
        return file.readline().startswith(("# lightning", "# Made by a call"))


def _remove_folder(folder: Path, patterns: tuple[str, ...]) -> None:
    """Remove a folder, except for files of others in it."""
    foreign = foreign_files(folder, patterns)
    for path in sorted(folder.iterdir()):
        if path not in foreign:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not any(folder.iterdir()) and not folder.is_symlink():
        folder.rmdir()
