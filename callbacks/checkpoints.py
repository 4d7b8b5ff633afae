"""When a checkpoint is taken, and which are kept: the last, the one before it, and the best."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from torch import Tensor

from callbacks.non_finite import NonFiniteGuard
from callbacks.preemption import Preemption
from lightning_modules.internals import Clock
from models.mistakes import Mistake


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, `previous.ckpt` and `best.ckpt` of a run.

    A checkpoint to resume from is taken only where Lightning resumes exactly: after an optimiser step that no
    validation follows, and at the end of an epoch. One that falls due elsewhere waits for the next such place.

    Args:
        every_n_steps: optimiser steps between two checkpoints within an epoch; one is always taken at its end.
        monitor: the metric that says which checkpoint is best; by default what the LightningModule names.
        mode: whether more (`max`) or less (`min`) of it is better; by default what the LightningModule names.
    """

    def __init__(self, every_n_steps: int = 500, monitor: str | None = None, mode: str | None = None) -> None:
        if every_n_steps < 1:
            raise Mistake(f"checkpoint.every_n_steps is {every_n_steps}, must be at least 1")
        if mode not in (None, "min", "max"):
            raise Mistake(f"checkpoint.mode is '{mode}', must be 'min' or 'max'")
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.mode = mode
        self.folder: Path | None = None
        self.config = ""
        self.best_score: float | None = None
        self.best_step = 0
        # Of the training that a checkpoint was made in: what was monitored, and an epoch's optimiser steps and samples.
        self.judged_by: tuple[str | None, str | None] | None = None
        self.steps_per_epoch: int | None = None
        self.training_samples: int | None = None
        self._saved_step = 0
        self._stopping = False

    @property
    def last(self) -> Path:
        """Where the newest checkpoint lies."""
        return self._path("last")

    @property
    def best(self) -> Path | None:
        """Where the best checkpoint lies, if there has been a validation."""
        path = self._path("best")
        return path if path.exists() else None

    def _path(self, name: str) -> Path:
        if self.folder is None:
            raise RuntimeError("Checkpoints.folder must be set before training starts")
        return self.folder / f"{name}.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: the best score so far and of what, and the step that is being saved."""
        return {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "saved_step": self._saved_step,
            "monitor": self.monitor,
            "mode": self.mode,
            "steps_per_epoch": self.steps_per_epoch,
            "training_samples": self.training_samples,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` saved."""
        self.best_score = state_dict["best_score"]
        self.best_step = state_dict["best_step"]
        self._saved_step = state_dict["saved_step"]
        self.steps_per_epoch = state_dict.get("steps_per_epoch")
        self.training_samples = state_dict.get("training_samples")
        if "monitor" in state_dict:
            self.judged_by = state_dict["monitor"], state_dict["mode"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Goes on with the raw weights where nothing averages them any more; `state_dict` then holds the average."""
        raw = checkpoint.get("current_model_state")
        averaging = any(isinstance(each, WeightAveraging) for each in trainer.callbacks)  # type: ignore[attr-defined]
        if raw is not None and trainer.state.fn == "fit" and not averaging:
            pl_module.load_state_dict(raw)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts config, classes and the look of images into the checkpoint, so that it can be used on its own."""
        checkpoint["exp_config"] = self.config
        checkpoint["class_names"] = list(getattr(trainer.datamodule, "class_names", []))  # type: ignore[attr-defined]
        if (pixels := getattr(trainer.datamodule, "pixels", None)) is not None:  # type: ignore[attr-defined]
            checkpoint["pixels"] = pixels.plain()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks the module what it wants monitored, unless the config says."""
        self.monitor = self.monitor or getattr(pl_module, "monitor", None)
        self.mode = self.mode or getattr(pl_module, "monitor_mode", "max")
        if self.judged_by not in (None, (self.monitor, self.mode)):
            # A score of something else says nothing about this.
            self.best_score, self.best_step = None, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what the steps of the training are counted in."""
        self.steps_per_epoch = Clock(trainer).steps_per_epoch
        self.training_samples = training_samples(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Takes a checkpoint if one is due, or wanted before a requested stop.

        A training that ends inside an epoch is validated once more, so that what it has learnt is seen and kept.
        """
        if Clock(trainer).ends_inside_an_epoch:
            # What Lightning takes for a wish to validate and to stop here.
            trainer.should_stop = True
        if not Clock(trainer).resumes_here:
            return
        stop = self._stop_requested(trainer)
        if stop or trainer.global_step - self._saved_step >= self.every_n_steps:
            self._save_last(trainer)
        self._stopping = stop

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Ends a run that was asked to stop: now, since what its last step logged has been written by now."""
        if self._stopping:
            Preemption.stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the checkpoint if the monitored metric is the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or self.monitor is None:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise Mistake(
                f"checkpoint.monitor is '{self.monitor}', but validation logs {', '.join(sorted(metrics)) or 'nothing'}"
            )
        score = metrics[self.monitor]
        value = score.item() if isinstance(score, Tensor) else float(score)
        if math.isnan(value):
            return
        # A best that is not here is none: it is in the run that this one started from, or somebody has removed it.
        here = trainer.strategy.broadcast(self._path("best").exists())
        # Of equals the later is kept: it has seen more, and on a small validation split ties are common.
        if (
            not here
            or self.best_score is None
            or (value >= self.best_score if self.mode == "max" else value <= self.best_score)
        ):
            self.best_score, self.best_step = value, trainer.global_step
            trainer.save_checkpoint(self._path("best"), weights_only=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the checkpoint of the epoch's end."""
        stop = self._stop_requested(trainer)
        self._save_last(trainer)
        if stop:
            Preemption.stop(trainer)

    def _stop_requested(self, trainer: Trainer) -> bool:
        return any(c.agreed(trainer) for c in trainer.callbacks if isinstance(c, Preemption))  # type: ignore[attr-defined]

    def _save_last(self, trainer: Trainer) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, NonFiniteGuard):
                callback.settle(trainer)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero and self.last.exists():
            # A second name for the old file: `last.ckpt` exists at every moment, and so does its predecessor.
            link = self.last.with_name(".previous.link")
            link.unlink(missing_ok=True)
            os.link(self.last, link)
            os.replace(link, self._path("previous"))
        trainer.save_checkpoint(self.last, weights_only=False)


def training_samples(trainer: Trainer) -> int | None:
    """Samples that an epoch's order is made of; None of a loader that does not say it."""
    batches = getattr(trainer.train_dataloader, "batches", None)
    return getattr(getattr(batches, "first", batches), "num_samples", None)
