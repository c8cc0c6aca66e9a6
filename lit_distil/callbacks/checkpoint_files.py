"""Checkpoint files that are whole or not there: written beside their place, made durable, moved, and hashed.

Lightning stages a checkpoint in the system's temporary folder and moves it from there. Where that is another file
system the move is a copy, and what is killed in it leaves neither the old file nor the new one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from lit_distil.durable import sha256_of, sync_folder, write_file

_SUFFIX = ".sha256"
LAST = "last.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint of one file so that a kill, a full disk or a power cut leaves the one before it.

    Beside each stands its sha256, as `sha256sum --check` reads it. A file that no longer is what was written is not
    loaded: in place of a damaged `last.ckpt` the newest sound checkpoint of its folder is taken, with a warning.
    Addresses that are no local paths are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint in place of the one that stands there, if any.

        Raises:
            OSError: It cannot be written; what stood there is untouched.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with staged.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            # while the file is exchanged, both the old one and the new one are right
            line = f"{sha256_of(staged)}  {target.name}\n"
            both = line + "".join(f"{old}  {target.name}\n" for old in _known(target))
            write_file(_hashes(target), [both.encode()])
            os.replace(staged, target)
            sync_folder(target.parent)
            write_file(_hashes(target), [line.encode()])
        except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as the latter
            raise OSError(
                f"{target}: the checkpoint could not be written ({error}); what stood there before is untouched. Make "
                "room or give another place (trainer.default_root_dir), and go on with --ckpt_path last"
            ) from error
        finally:
            with suppress(OSError):
                staged.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, if it is what was written.

        Raises:
            ValueError: It is damaged, and is not the `last.ckpt` of a folder that holds a sound one.
        """
        loaded: dict[str, Any] = super().load_checkpoint(self._sound(path), *args, **kwargs)
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its hash."""
        super().remove_checkpoint(path)
        if "://" not in str(path):
            _hashes(Path(path)).unlink(missing_ok=True)

    def _sound(self, path: str | Path) -> str | Path:
        target = Path(path)
        if "://" in str(path) or not target.is_file() or _is_sound(target):
            return path
        others = [other for other in target.parent.glob("*.ckpt") if other != target and _known(other)]
        sound = next((other for other in sorted(others, key=_age) if _is_sound(other)), None)
        message = f"{target}: the checkpoint is damaged, its sha256 is not the one in {_hashes(target).name}"
        if sound is None:
            raise ValueError(f"{message}, and its folder holds no sound one; begin anew without --ckpt_path")
        if target.name != LAST:
            raise ValueError(f"{message}; a sound one is {sound}")
        rank_zero_warn(f"{message}; going on from {sound} in its place")
        return sound


def _hashes(path: Path) -> Path:
    return path.with_name(path.name + _SUFFIX)


def _known(path: Path) -> list[str]:
    """What the file may hash to: nothing if that was not kept, and two while it was being exchanged."""
    hashes = _hashes(path)
    return [line.split()[0] for line in hashes.read_text().splitlines() if line] if hashes.is_file() else []


def _is_sound(path: Path) -> bool:
    known = _known(path)
    return not known or sha256_of(path) in known


def _age(path: Path) -> float:
    return -path.stat().st_mtime
