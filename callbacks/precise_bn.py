"""Batch norms whose statistics are those of the weights that are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from lightning_modules.internals import Clock
from lightning_modules.task import Task
from models.compute import forget
from models.mistakes import Mistake

# Of training, that estimate statistics.
BATCHES = 200


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

    def __init__(self, batches: int = BATCHES) -> None:
        if batches < 1:
            raise Mistake(f"PreciseBN: batches must be at least 1, not {batches}")
        self.batches = batches
        self._recalibration = Recalibration(batches)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averaging = [each for each in callbacks if isinstance(each, WeightAveraging)]
        if stage == "fit" and averaging:
            raise Mistake(
                f"PreciseBN: {type(averaging[0]).__name__} evaluates averaged weights, whose statistics are averaged, "
                "too: use one of them, or AveragedWeights with batch_norm: recalibrate"
            )

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._recalibration.before_validation(trainer, pl_module, [_network(pl_module)])

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._recalibration.at_the_end(trainer, pl_module, [_network(pl_module)])


class Recalibration:
    """Estimates the statistics of batch norms anew when an evaluation is next.

    Args:
        batches: of training, at most.
    """

    def __init__(self, batches: int = BATCHES) -> None:
        self.batches = batches
        self._done_at: int | None = None

    def before_validation(self, trainer: Trainer, task: LightningModule, networks: Sequence[nn.Module]) -> None:
        """To be asked at the end of each batch.

        Args:
            trainer: the training's.
            task: says what networks take of a batch.
            networks: those whose norms are estimated.
        """
        if Clock(trainer).validates_next:
            self._estimate(trainer, task, networks)

    def at_the_end(self, trainer: Trainer, task: LightningModule, networks: Sequence[nn.Module]) -> None:
        """To be asked at the end of each epoch; arguments are those of `before_validation`."""
        clock = Clock(trainer)
        if clock.step == clock.total_steps and self._done_at != clock.step:
            self._estimate(trainer, task, networks)

    def _estimate(self, trainer: Trainer, task: LightningModule, networks: Sequence[nn.Module]) -> None:
        self._done_at = trainer.global_step
        assert isinstance(task, Task)
        loader = task.data.train_dataloader()
        if set_epoch := getattr(loader, "set_epoch", None):
            set_epoch(trainer.current_epoch)
        # Those that are frozen are in evaluation mode.
        norms = [
            module
            for network in networks
            for module in network.modules()
            if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        ]
        kept = [_Statistics(norm) for norm in norms]
        try:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                for batch in islice(loader, self.batches):
                    inputs = task.inputs(trainer.strategy.batch_to_device(batch))
                    for network in networks:
                        network(*_as_precise(inputs, network))
        finally:
            for each in kept:
                each.settle()
            for network in networks:
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


def _as_precise(inputs: tuple[Any, ...], network: nn.Module) -> Any:
    """Inputs in the precision of a network, which that of averaged weights may differ from."""
    precision = next((each.dtype for each in network.parameters()), torch.get_default_dtype())
    return tree_map_only(Tensor, lambda each: each.to(precision) if each.is_floating_point() else each, inputs)


def _network(pl_module: LightningModule) -> nn.Module:
    return pl_module.network  # type: ignore[return-value]
