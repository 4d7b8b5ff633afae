"""Checkpoint files: written whole or not at all, checked before they are believed, never executed."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names the file and the remedy."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, flushes to the disk, then renames; reads with `weights_only=True` alone."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint so that a crash at any moment leaves the old file or the new one.

        Raises:
            CheckpointError: the file could not be written, e.g. because the disk is full.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(f"{target}: the checkpoint could not be written: {_reason(error)}") from error

    def load_checkpoint(
        self, path: Any, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint; nothing in it is executed.

        Raises:
            CheckpointError: the file is missing, torn, or holds more than tensors and plain values.
        """
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint file if it is there."""
        Path(path).unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__ or error
    for candidate in (error, cause):
        if isinstance(candidate, OSError) and candidate.errno == errno.ENOSPC:
            return "no space left on the device. The previous checkpoint is intact: free space, run the command again"
    return f"{cause}. The previous checkpoint is intact"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None: torn files and flipped bits are found by their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except FileNotFoundError:
        return "no such file"
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return f"torn or corrupt ({error})"
    return f"corrupt (checksum of {broken})" if broken else None


def read_checkpoint(path: Path, map_location: Any = None) -> dict[str, Any]:
    """Reads a checkpoint file after checking it.

    Raises:
        CheckpointError: the file is missing, torn, or holds more than tensors and plain values.
    """
    if problem := damage(path):
        raise CheckpointError(f"{path}: {problem}")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of exp ({str(error).splitlines()[0]}); "
            "official checkpoints are translated by `python -m exp convert`"
        ) from error
