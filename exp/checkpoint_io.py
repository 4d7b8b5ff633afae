"""Checkpoint files: written whole or not at all, checked before they are believed, never executed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO

from callbacks.whole_files import whole
from exp.trust import read_yaml
from exp.weight_files import WeightFileError, read
from models.official import some


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names the file and the remedy.

    Args:
        path: the file.
        reason: what is wrong with it.
        remedy: what to do about it.
    """

    def __init__(self, path: Path, reason: str, remedy: str = "") -> None:
        super().__init__(f"{path}: {reason}; {remedy}" if remedy else f"{path}: {reason}")
        self.reason = reason


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, flushes to the disk, then renames; reads with `exp.weight_files` alone."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes a checkpoint so that a crash at any moment leaves the old file or the new one.

        Raises:
            CheckpointError: the file could not be written, e.g. because the disk is full.
        """
        target = Path(path)
        try:
            with whole(target) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(target, f"the checkpoint could not be written: {_reason(error)}") from error

    def load_checkpoint(
        self, path: Any, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint to the CPU; nothing in it is executed.

        Raises:
            CheckpointError: the file is missing, damaged, or no checkpoint of a run.
        """
        content = read_checkpoint(Path(path))
        if not isinstance(content.get("state_dict"), dict):
            raise _not_ours(Path(path), content)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint file if it is there."""
        Path(path).unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__ or error
    for candidate in (error, cause):
        if isinstance(candidate, OSError) and candidate.errno == errno.ENOSPC:
            return "no space left on the device. The previous checkpoint is intact: free space, run the command again"
    return f"{cause}. The previous checkpoint is intact"


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None; whatever cannot be loaded is damaged.

    It costs one reading of the file, which is what loading it costs.
    """
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        return error.reason
    return None


def read_checkpoint(path: Path, tensors: bool = True) -> dict[str, Any]:
    """Reads a checkpoint file and compares its checksums; nothing in it is executed.

    Args:
        path: the file.
        tensors: whether the numbers of tensors are wanted; without them little of the file is read.

    Returns:
        What it holds, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint of a run.
    """
    try:
        content = read(path, tensors)
    except WeightFileError as error:
        others = sorted(each.name for each in path.parent.glob("*.ckpt") if each != path)
        remedy = f"take {' or '.join(others)} beside it" if others and error.what != str(error) else ""
        raise CheckpointError(path, error.what, remedy or str(error).removeprefix(error.what)[2:]) from error
    if not isinstance(content, dict) or not ("exp_config" in content or "state_dict" in content):
        raise _not_ours(path, content)
    return content


def _not_ours(path: Path, content: Any) -> CheckpointError:
    found = f"it has {some(content)}" if isinstance(content, dict) else f"it holds a {type(content).__name__}"
    return CheckpointError(
        path, f"not a checkpoint of exp ({found})", "an official file goes with a config, by --config and --weights"
    )


def config_of(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The config that a checkpoint was made with, as plain values; None if it does not say."""
    text = checkpoint.get("exp_config")
    try:
        config = read_yaml(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        return None
    return config if isinstance(config, dict) else None
