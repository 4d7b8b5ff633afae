"""Network slimming: a training that makes the scales of batch norms sparse, so that channels can go afterwards."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from models.mistakes import Mistake
from models.pruning.sparsity import add_sparsity_gradient, batch_norms


class Slimming(Callback):
    """Adds the gradient of s sum |gamma| to the scales of a network's batch norms at each optimiser step.

    `python -m exp prune --criterion batch_norm_scale --scope global` then removes the channels of smallest scale.

    Reference: "Learning Efficient Convolutional Networks through Network Slimming", arXiv 1708.06519.

    Args:
        s: strength; the published code has 1e-4 for VGG and 1e-5 for residual and dense networks.
        one_dimensional: whether norms of vectors count, too, as between the linear layers of a VGG.

    Raises:
        Mistake: a strength that is not positive; when training begins, a network without batch norms.
    """

    # `python -m exp prune` leaves it out of the trainings that follow.
    prepares_pruning = True

    def __init__(self, s: float, one_dimensional: bool = False) -> None:
        if s <= 0:
            raise Mistake(f"Slimming: s is positive, not {s:g}")
        self.s, self.one_dimensional = s, one_dimensional

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        norms = batch_norms(pl_module.network, self.one_dimensional)  # type: ignore[arg-type]
        if not norms:
            raise Mistake(
                f"Slimming: {type(pl_module.network).__name__} has no batch norm whose scales it could make sparse"
            )
        self._gammas = [norm.get_parameter("weight") for norm in norms.values()]

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        add_sparsity_gradient(self._gammas, self.s)
