"""Randomness of a training step as a function of (seed, epoch, step, process)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.randomness import step_seed
from lightning_modules.task import Task


class StepSeed(Callback):
    """Seeds every random generator at each training step, so that no generator's state needs saving.

    Dropout, stochastic depth, mixup and whatever else draws in a step gets the same numbers in a resumed run as in an
    uninterrupted one, on every process, whether or not a validation came between. Costs a few microseconds. What all
    processes must draw alike, such as the sub-network of a step, is drawn from the task's `shared_generator`.

    Args:
        seed: the run's seed; `None` leaves the generators alone.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds `random`, NumPy, torch and the device in use for this step, and what the processes share."""
        if self.seed is None:
            return
        if isinstance(pl_module, Task):
            pl_module.shared_generator.manual_seed(step_seed(self.seed, trainer.current_epoch, batch_idx))
        own = step_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        random.seed(own)
        np.random.seed(own & 0xFFFFFFFF)
        # `torch.manual_seed` would also note the seed for every kind of device that is not there, at 0.8 ms a step.
        torch.default_generator.manual_seed(own)
        if pl_module.device.type != torch.default_generator.device.type:
            torch.get_device_module(pl_module.device).manual_seed(own)
