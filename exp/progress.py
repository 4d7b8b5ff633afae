"""The live progress bar."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Rich's bar with the loss and accuracy of training and validation.

    It is redrawn by the clock and not by the step: drawing takes as long as a short step, and reading the metrics
    makes the host wait for the device.

    Args:
        seconds: between two redraws.
    """

    def __init__(self, seconds: float = 0.25) -> None:
        super().__init__(refresh_rate=1)
        self.seconds = seconds
        self._drawn = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraws if it is time, or the epoch ends."""
        if self.is_enabled and self._due(batch_idx + 1 == trainer.num_training_batches):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Redraws; where nobody watches, in a log file, writes a line."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.is_enabled and not sys.stdout.isatty():
            values = "  ".join(f"{name} {value:.4f}" for name, value in self.get_metrics(trainer, pl_module).items())
            print(f"{self._get_train_description(trainer.current_epoch).strip()}: {values}", flush=True)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Redraws if it is time, or the validation ends."""
        batch_idx: int = args[2] if len(args) > 2 else kwargs["batch_idx"]
        # Of all processes only the first has a bar.
        if self.is_enabled and self._due(batch_idx + 1 == self.total_val_batches_current_dataloader):
            super().on_validation_batch_end(trainer, pl_module, *args, **kwargs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Redraws if it is time, or the test ends."""
        batch_idx: int = args[2] if len(args) > 2 else kwargs["batch_idx"]
        if self.is_enabled and self._due(batch_idx + 1 == self.total_test_batches_current_dataloader):
            super().on_test_batch_end(trainer, pl_module, *args, **kwargs)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Everything logged for the bar, without Lightning's version number."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _due(self, last: bool = False) -> bool:
        now = time.monotonic()
        if not last and now - self._drawn < self.seconds:
            return False
        self._drawn = now
        return True

    def _get_train_description(self, current_epoch: int) -> str:
        # People count from one.
        epochs = self.trainer.max_epochs
        return f"Epoch {current_epoch + 1}" + (f"/{epochs}" if epochs is not None and epochs > 0 else "")
