"""What tasks with a teacher ask of a training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn


def tell_if_none_moves(callbacks: list[Any]) -> None:
    """Warns where no callback of a training moves the teachers, which then stay what they began as.

    Args:
        callbacks: those that do say so in an attribute `moves_teachers`.
    """
    if not any(getattr(callback, "moves_teachers", False) for callback in callbacks):
        rank_zero_warn(
            "nothing moves the teacher, which stays what it began as: add callbacks.Smoothing to trainer.callbacks"
        )
