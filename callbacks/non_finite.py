"""Stopping when a loss is no longer a finite number."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the message names step, term and samples."""


class NonFiniteGuard(Callback):
    """Stops the run with the step, the loss term and the samples when a loss is not finite.

    The verdict on a step is read one step later, so that the host never waits for the step that the device works on;
    a checkpoint is written only once the verdict on the step before it is in.
    """

    def __init__(self) -> None:
        self._pending: tuple[int, dict[str, Tensor], dict[str, Tensor]] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reads the losses of the last step and notes this one's."""
        self.settle(trainer)
        losses: dict[str, Tensor] = getattr(pl_module, "losses", {})
        if losses:
            self._pending = (trainer.fit_loop.epoch_loop.total_batch_idx, losses, _samples(batch))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the verdict on the epoch's last step."""
        self.settle(trainer)

    def settle(self, trainer: Trainer) -> None:
        """Reads the pending verdict.

        Raises:
            NonFiniteLoss: a term of the pending step was not finite.
        """
        if self._pending is None:
            return
        step, losses, samples = self._pending
        self._pending = None
        values = torch.stack(list(losses.values())).tolist()
        if all(map(math.isfinite, values)):
            return
        bad = ", ".join(f"'{name}'" for name, value in zip(losses, values, strict=True) if not math.isfinite(value))
        raise NonFiniteLoss(
            f"the loss {bad} is not finite at step {step} (epoch {trainer.current_epoch}). "
            f"Samples of this batch: {self._names(trainer, samples)}. "
            "Look for broken samples, lower the learning rate, or clip gradients (trainer.gradient_clip_val)."
        )

    @staticmethod
    def _names(trainer: Trainer, samples: dict[str, Tensor]) -> str:
        name = getattr(trainer.datamodule, "sample_name", None)  # type: ignore[attr-defined]
        found = [(split, index) for split, indices in samples.items() for index in indices.tolist()]
        return ", ".join(name(split, index) if name else str(index) for split, index in found) or "unknown"


def _samples(batch: Any) -> dict[str, Tensor]:
    """Positions of a batch's samples by the split that they are of; a batch of several streams has a part for each."""
    if not isinstance(batch, dict):
        return {}
    if "index" in batch:
        return {"train": batch["index"]}
    return {split: part["index"] for split, part in batch.items() if isinstance(part, dict) and "index" in part}
