"""Batch norms whose statistics are those of the weights that are evaluated."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from callbacks.averaging import WeightEMA
from lightning_modules.internals import Clock
from lightning_modules.task import Task
from models.compute import forget
from models.mistakes import Mistake


class PreciseBN(Callback):
    """Re-estimates the statistics of batch norms before each validation and at the end of the training.

    The running average of a training is of weights that were changing. Here mean and variance are the means over the
    first training batches of the epoch, of all processes, with the weights as they are: "precise BN", section 3.1 of
    "Rethinking 'Batch' in BatchNorm" (arXiv 2105.07576). They stay in the network, so that checkpoints hold what was
    evaluated, and training goes on from them.

    Args:
        batches: how many batches; fewer where an epoch has fewer.

    Raises:
        Mistake: less than one batch; when training begins, another callback that evaluates averaged weights.
    """

    def __init__(self, batches: int = 200) -> None:
        if batches < 1:
            raise Mistake(f"PreciseBN: batches must be at least 1, not {batches}")
        self.batches = batches
        self._done_at: int | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and any(isinstance(each, WeightEMA) for each in trainer.callbacks):  # type: ignore[attr-defined]
            raise Mistake(
                "PreciseBN: WeightEMA evaluates averaged weights, whose statistics are averaged, too: use one of them"
            )

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if Clock(trainer).validates_next:
            self._estimate(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        clock = Clock(trainer)
        if clock.step == clock.total_steps and self._done_at != clock.step:
            self._estimate(trainer, pl_module)

    def _estimate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done_at = trainer.global_step
        assert isinstance(pl_module, Task)
        network: nn.Module = pl_module.network
        loader = pl_module.data.train_dataloader()
        if set_epoch := getattr(loader, "set_epoch", None):
            set_epoch(trainer.current_epoch)
        # Those that are frozen are in evaluation mode.
        norms = [
            module
            for module in network.modules()
            if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        ]
        kept = [_Statistics(norm) for norm in norms]
        try:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                for batch in islice(loader, self.batches):
                    network(*pl_module.inputs(trainer.strategy.batch_to_device(batch)))
        finally:
            for each in kept:
                each.settle()
            forget(network)
        if norms:
            everything = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
            mean = trainer.strategy.reduce(torch.cat([_given(value) for value in everything]), reduce_op="mean")
            for value, part in zip(everything, mean.split([len(_given(value)) for value in everything]), strict=True):
                _given(value).copy_(part)


class _Statistics:
    """Has a norm take the mean over batches, from the next on, until it is settled."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm, self.momentum = norm, norm.momentum
        self.before = [_given(buffer).clone() for buffer in self._buffers()]
        norm.reset_running_stats()
        # Which makes it count batches and weigh them alike.
        norm.momentum = None

    def settle(self) -> None:
        """Gives the norm its momentum back, and its old statistics if it has not run."""
        self.norm.momentum = self.momentum
        *old, batches = self.before
        if not self.norm.num_batches_tracked:
            for buffer, value in zip(self._buffers(), old, strict=False):
                _given(buffer).copy_(value)
        _given(self.norm.num_batches_tracked).copy_(batches)

    def _buffers(self) -> tuple[Tensor | None, ...]:
        return self.norm.running_mean, self.norm.running_var, self.norm.num_batches_tracked


def _given(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return buffer
