"""How long a warm-up or a cooldown lasts: as it says, or, where a trial is too short for it, less."""

from __future__ import annotations

import warnings

from models.mistakes import Mistake

# What is left, as a share of the training, of one that would take all of it.
SHARE = 0.1


class Shortened(UserWarning):
    """A part of a schedule was shortened, for it would have left nothing of the training."""


def steps_of(
    epochs: float, steps: int | None, steps_per_epoch: int, total_steps: int, what: str = "warm-up", before: int = 0
) -> int:
    """Optimiser steps of a part of a schedule.

    Args:
        epochs: its length in epochs.
        steps: its length in optimiser steps instead; None for that in epochs.
        steps_per_epoch, total_steps: optimiser steps of an epoch and of the training.
        what: what it is called.
        before: steps that another part takes.

    Raises:
        Mistake: the training is empty, or the length below 0.
    """
    if total_steps < 1 or steps_per_epoch < 1:
        raise Mistake(f"a schedule needs at least one step, not {total_steps=} and {steps_per_epoch=}")
    length = round(epochs * steps_per_epoch) if steps is None else steps
    if length < 0:
        raise Mistake(f"a {what} cannot last {length} steps")
    left = total_steps - before
    if length < left:
        return length
    kept = int(SHARE * left)
    warnings.warn(
        f"the {what} ({length} steps) leaves nothing of the training ({total_steps} steps): shortened to {kept} steps",
        Shortened,
        stacklevel=2,
    )
    return kept
