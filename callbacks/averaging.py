"""Exponential moving average of the weights, as the papers define it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor


class WeightEMA(EMAWeightAveraging):
    """Lightning's EMA, started from the initial weights: e <- d e + (1 - d) w after every optimiser step.

    Lightning's own starts from the weights after the first step. Validation, test and the saved `state_dict` use the
    average; training goes on with the raw weights.

    Args:
        decay: d.
        warm_up: whether d grows with the number n of steps done, as min(d, (1 + n) / (10 + n)), so that the initial
            weights are soon forgotten: TensorFlow's ExponentialMovingAverage with `num_updates`.
    """

    def __init__(self, decay: float = 0.9999, warm_up: bool = False) -> None:
        super().__init__(decay=decay)
        self.decay = decay
        self.warm_up = warm_up

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the initial weights when fit begins."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            assert self._average_model is not None
            # Which makes it the number of steps that are done when they are averaged.
            self._average_model.n_averaged.fill_(1)
            if self.warm_up:
                self._average_model.avg_fn = self._warming_up

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores both sets of weights to train on; evaluation needs only the average, which `state_dict` holds."""
        # A test at the end of fit is an evaluation, although the average of the training is still there.
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _warming_up(self, average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        steps = torch.as_tensor(steps)
        decay = ((1 + steps) / (10 + steps)).clamp(max=self.decay)
        return decay * average + (1 - decay) * current
