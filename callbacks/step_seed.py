"""Randomness of a training step as a function of (seed, epoch, step, process)."""

from __future__ import annotations

import hashlib
import random
import struct
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Seeds every random generator at each training step, so that no generator's state needs saving.

    Dropout, stochastic depth, mixup and whatever else draws in a step gets the same numbers in a resumed run as in an
    uninterrupted one, on every process, whether or not a validation came between. Costs a few microseconds.

    Args:
        seed: the run's seed; `None` leaves the generators alone.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds `random`, NumPy and every torch device for this step."""
        if self.seed is None:
            return
        key = struct.pack("<4q", self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        digest = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
        random.seed(digest)
        np.random.seed(digest & 0xFFFFFFFF)
        torch.manual_seed(digest)
