"""The folder of a run: whether it may be written to, and whether its settings continue what is there.

`fit` and the calls of `lit_distil.api` ask here before anything in the folder is touched.
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
    "checkpoints": ("*.ckpt", "*.ckpt/", "*.sha256"),
    "export": NETWORK_FILES,
    "tensorboard": ("events.out.tfevents.*", "hparams.yaml", "checkpoints/"),
    "tokenizer": NETWORK_FILES,
    "config.yaml": (),
}
"""What a run writes into its folder, and what it writes into each folder there. Removed in this order."""

SETTINGS_KEY = "run_settings"
"""Where a checkpoint keeps the settings of its run, as JSON."""

# settings that do not change what a run computes
_FREE = (
    *("config", "ckpt_path", "imports", "overwrite", "allow_changes"),
    *("trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
)
# What may change at a resume. A setting that none of these patterns matches is applied as it is given; of two that
# match, the longer one counts.
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
    """The folder holds this very run, and it came to its end."""


class RunFolder:
    """A folder that a run is about to write to.

    Args:
        path: The folder.
        is_call: Whether one of the calls (`pretrain`, `distil`, `finetune`) writes to it, which continues its own run
            and wants a folder of its own; otherwise `fit` does, which continues only when asked to.
    """

    def __init__(self, path: str | Path, *, is_call: bool) -> None:
        self.path, self.is_call = Path(path), is_call
        self.field = "out" if is_call else "trainer.default_root_dir"
        self._to_remove: list[str] = []

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes of this machine from training in the folder meanwhile.

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
        """Decide what becomes of the folder. Nothing is touched; `clear` removes what is to be replaced.

        Args:
            settings: What the run is asked to do, in plain values; a run keeps it as `config.yaml`.
            overwrite: Replace the run that is there (`RUN_FILES`, nothing else).
            checkpoint: The file that to continue from; None to begin anew.
            allow_changes: Go on from a checkpoint even if settings changed that break the continuation.

        Returns:
            The checkpoint to continue from; None if the run begins anew.

        Raises:
            RunFinishedError: The same call has finished.
            ValueError: The folder is a file, cannot be made, or holds another run or files that no run wrote; or the
                settings do not continue the checkpoint.
        """
        if getattr(rank_zero_only, "rank", 0) != 0 and overwrite:
            return checkpoint  # the first rank decides, and may be removing the old run already
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
        """Remove what the new run replaces, and nothing that somebody else put there."""
        for name in self._to_remove:
            path = self.path / name
            if path.is_dir():
                _remove_folder(path, RUN_FILES[name])
            else:
                path.unlink(missing_ok=True)
        self._to_remove = []

    def _refuse_foreign(self, names: set[str], *, overwrite: bool) -> None:
        """Files beside a run may stay there, but those in the places of its own may be somebody's work."""
        in_place = names & {"config.yaml", "metrics.csv", "checkpoints", "export"}
        # a start that failed may have left the other two
        foreign = sorted(names - {"tokenizer", "tensorboard"} if self.is_call and not overwrite else in_place)
        if foreign:
            ways_out = "give another folder"
            if self.is_call and not overwrite:
                ways_out += ", or start again with overwrite=True (--overwrite)"
            raise ValueError(
                f"{self.field}: {self.path} is not empty and holds no run ({', '.join(foreign[:5])}); {ways_out}"
            )

    def _continue(self, changes: list[Difference]) -> str | None:
        """The last checkpoint of the same call; an error unless the run that is there may be continued or repeated."""
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
    """`last.ckpt` of a run's folder; or the newest, if the run was killed before its first `last.ckpt` was written."""
    last = run / "checkpoints" / "last.ckpt"
    others = sorted(last.parent.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return last if last.exists() or not others else others[-1]


def saved_config(folder: Path) -> dict[str, Any] | None:
    """The `config.yaml` of the run in a folder; None if there is no run."""
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) and {"model", "data", "trainer"} <= content.keys() else None


def check_continuation(checkpoint: str, settings: dict[str, Any], *, allow_changes: bool) -> None:
    """Print what differs from the settings of a checkpoint's run, and refuse what breaks the continuation.

    The settings in the checkpoint count; without them, those of the `config.yaml` beside its folder.

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
    """Whether a run goes on as another one if this setting, such as `data.batch_size`, changes at a resume."""

    def longest(patterns: tuple[str, ...]) -> int:
        return max((len(pattern) for pattern in patterns if fnmatch(name, pattern)), default=0)

    return longest(_BREAKING) > longest(_APPLIED)


def _settings_in(checkpoint: Path) -> dict[str, Any] | None:
    """The settings that a checkpoint keeps; None where it has none or cannot be read."""
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    try:
        text = torch.load(file, map_location="cpu", weights_only=True, mmap=True).get(SETTINGS_KEY)
        return None if text is None else json.loads(text)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ValueError):
        return None  # loading it will say what is wrong


def _is_written(folder: Path) -> bool:
    """Whether a run wrote the folder's `config.yaml`, and not a person who wants to train there."""
    with (folder / "config.yaml").open(encoding="utf-8") as file:
        return file.readline().startswith(("# lightning", "# Made by a call"))


def _remove_folder(folder: Path, patterns: tuple[str, ...]) -> None:
    """Remove a folder, but for what somebody else put into it."""
    foreign = foreign_files(folder, patterns)
    for path in sorted(folder.iterdir()):
        if path not in foreign:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not any(folder.iterdir()) and not folder.is_symlink():
        folder.rmdir()
