"""Sparse Structure Selection: a training that makes whole residual branches superfluous."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_modules.internals import Clock
from models.mistakes import Mistake
from models.pruning.branches import scales_of
from models.pruning.sparsity import proximal_step


class StructureSelection(Callback):
    """Trains the scales of a network's branches by accelerated proximal gradient, with penalty * sum |scale|.

    The scales are of `models.classifiers.scaled_branches`. The task's optimiser never sees them: they take their own
    step, at its learning rate, just before it takes its own. Logged as `train/branches` is how many are not zero.
    `PrunedNetwork` with `criterion: branches` then removes those at zero, and `python -m exp prune --criterion
    branch_scale` as many as a budget asks for.

    Reference: "Data-Driven Sparse Structure Selection for Deep Neural Networks", arXiv 1707.01213.

    Args:
        penalty: weight of sum |scale| in the loss.
        momentum: of the scales' own steps.

    Raises:
        Mistake: a penalty that is not positive or a momentum outside [0, 1); when training begins, a network without
            scales.
    """

    # `python -m exp prune` leaves it out of the trainings that follow.
    prepares_pruning = True

    def __init__(self, penalty: float, momentum: float = 0.9) -> None:
        if penalty <= 0 or not 0 <= momentum < 1:
            raise Mistake(
                f"StructureSelection: penalty is positive and momentum at least 0 and less than 1, not {penalty:g} and "
                f"{momentum:g}"
            )
        self.penalty, self.momentum = penalty, momentum
        self._velocity: Tensor | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scales = list(scales_of(pl_module.network).values())  # type: ignore[arg-type]
        if not self._scales:
            raise Mistake(
                f"StructureSelection: {type(pl_module.network).__name__} has no scales on its branches; build it by "
                "models.classifiers.scaled_branches"
            )

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        scales = torch.stack([scale.detach() for scale in self._scales])
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._scales]
        if self._velocity is None:
            self._velocity = torch.zeros_like(scales)
        self._velocity = self._velocity.to(scales.device)
        lr = next(
            group["lr"] for group in optimizer.param_groups for each in group["params"] if each is self._scales[0]
        )
        proximal_step(scales, self._velocity, torch.stack(gradients), lr, self.momentum, self.penalty)
        torch._foreach_copy_([scale.detach() for scale in self._scales], list(scales.unbind()))
        for scale in self._scales:
            # Optimisers pass over parameters without a gradient, decay included.
            scale.grad = None
        if Clock(trainer).logs():
            pl_module.log("train/branches", (scales != 0).sum().float())

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self._velocity}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._velocity = state_dict["velocity"]
