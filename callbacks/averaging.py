"""Averages of the weights of a training, which are evaluated in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from typing_extensions import override

from callbacks.precise_bn import Recalibration
from callbacks.smoothing import Following, Rule
from lightning_modules.schedules import AverageWarmup
from models.mistakes import Mistake
from models.smoothing import BatchNormPolicy, Smoother, has_batch_norm

Statistics = Literal["ema", "copy", "recalibrate"]


class AveragedWeights(WeightAveraging):
    """Evaluates weights that follow those that are trained, from the initial ones on, by any smoothing rule.

    They move after every optimiser step. Validation, test and the saved `state_dict` use them; training goes on with
    the raw weights. Logs what `Smoothing` does, with `average` in place of `teacher`.

    Args:
        rule: how they follow.
        batch_norm: running statistics, and other buffers, are averaged with the rule's effective momentum (`ema`) or
            are copies (`copy`). With `recalibrate` they are copies, and before each validation and at the end of the
            training the averaged weights' own statistics are estimated over training batches, as stochastic weight
            averaging does (arXiv 1803.05407).

    Raises:
        Mistake: an unknown option; when training begins, nothing to recalibrate.
    """

    def __init__(self, rule: Rule, batch_norm: Statistics = "ema") -> None:
        if batch_norm not in get_args(Statistics):
            choices = ", ".join(get_args(Statistics))
            raise Mistake(f"AveragedWeights: batch_norm must be one of {choices}, not {batch_norm!r}")
        super().__init__()
        self.rule = rule
        self.batch_norm: Statistics = batch_norm
        self._recalibration = Recalibration()
        self.following: Following | None = None
        self._loaded: Mapping[str, Any] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the initial weights when fit begins."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            assert self._average_model is not None
            # Which makes it the number of steps that are done when they are averaged.
            self._average_model.n_averaged.fill_(1)
            if self.batch_norm == "recalibrate" and not has_batch_norm(pl_module):
                raise Mistake("AveragedWeights: the network has no batch norm to recalibrate: leave out batch_norm")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        average = self._average_model.to(pl_module.device)
        policy: BatchNormPolicy = "ema" if self.batch_norm == "ema" else "copy"
        smoother = Smoother({"": (pl_module, average.module)}, self.rule.unit, policy, self.rule.keep_layers)
        # Averaging may have come into a training that was going on without it.
        begun = trainer.global_step + 1 - int(average.n_averaged)
        self.following = Following("average", self.rule, smoother, trainer, begun)
        self.following.load(self._loaded)
        if self.rule.keeps or self.rule.momentum_schedule is not None:
            self.following.announce(pl_module)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert self.following is not None
        assert self._average_model is not None
        if trainer.global_step > self._latest_update_step:
            self.following.update(trainer.global_step - 1)
            self._average_model.n_averaged += 1
            self._latest_update_step = trainer.global_step
        self.following.log(trainer, pl_module)
        if self.batch_norm == "recalibrate":
            self._recalibration.before_validation(trainer, pl_module, [self._network])

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.batch_norm == "recalibrate":
            self._recalibration.at_the_end(trainer, pl_module, [self._network])

    @property
    def _network(self) -> nn.Module:
        assert self._average_model is not None
        return self._average_model.module.network  # type: ignore[return-value]

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | (self.following.state() if self.following is not None else {})

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._loaded = state_dict

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores both sets of weights to train on; evaluation needs only the average, which `state_dict` holds."""
        # A test at the end of fit is an evaluation, although the average of the training is still there.
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class WeightEMA(AveragedWeights):
    """An exponential moving average: e <- d e + (1 - d) w after every optimiser step.

    Args:
        decay: d.
        warm_up: whether d grows with the number n of steps done, as min(d, (1 + n) / (10 + n)), so that the initial
            weights are soon forgotten: TensorFlow's ExponentialMovingAverage with `num_updates`.
    """

    def __init__(self, decay: float = 0.9999, warm_up: bool = False) -> None:
        super().__init__(Rule(decay, momentum_schedule=AverageWarmup(1.0, 10.0) if warm_up else None))
        self.decay = decay
        self.warm_up = warm_up
