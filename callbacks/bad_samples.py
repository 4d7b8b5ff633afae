"""Telling which samples of a data set were skipped."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.whole_files import whole


class BadSamples(Callback):
    """Logs the number of samples that could not be read, and lists them with the reasons.

    With `on_bad_sample: skip`, a data module notes what it skips in `bad_samples` (name -> reason).

    Args:
        path: the CSV file of the list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what has been skipped so far."""
        bad: dict[str, str] = getattr(trainer.datamodule, "bad_samples", {})  # type: ignore[attr-defined]
        if not bad or not trainer.is_global_zero:
            return
        with whole(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["sample", "reason"])
            writer.writerows(bad.items())
        for logger in trainer.loggers:
            logger.log_metrics({"data/bad_samples": float(len(bad))}, step=max(0, trainer.global_step - 1))
