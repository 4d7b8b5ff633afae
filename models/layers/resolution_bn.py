"""Batch norm with statistics of its own for every input resolution.

Reference: "Dynamic Resolution Network", arXiv 2106.02898.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.mistakes import Mistake


class ResolutionBatchNorm(nn.Module):
    """m copies of a batch norm, of which the one of the resolution in use normalises.

    `x <- gamma_j (x - mu_j) / sqrt(var_j + eps) + beta_j`, j the active set: gamma, beta, mu and var are all private.
    A training batch of a single image has no statistics of its own: it is normalised with the running ones, and
    leaves them alone.

    Args:
        norm: The norm to copy, whatever it does besides normalising (timm's also activate).
        num_sets: How many copies, m.
        pinned: Whether it is always set 0, at every resolution; the others exist in the state dict and are not trained.
    """

    def __init__(self, norm: _BatchNorm, num_sets: int, pinned: bool = False) -> None:
        super().__init__()
        self.sets = nn.ModuleList(copy.deepcopy(norm) for _ in range(num_sets))
        self.pinned = pinned
        self.active = 0
        if pinned:
            self.sets[1:].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape, by the active set."""
        norm = self.sets[self.active]
        if not norm.training or len(x) > 1:
            return norm(x)
        norm.eval()
        y = norm(x)
        norm.train()
        return y


def swap_batch_norms(network: nn.Module, num_sets: int, pinned: tuple[str, ...] = ()) -> None:
    """Replaces every batch norm of a network, in place.

    Args:
        network: Any network with batch norms.
        num_sets: How many sets each gets.
        pinned: Parts of names; norms that have one of them in theirs use set 0 at every resolution.

    Raises:
        Mistake: The network has no batch norm, or none of the pinned ones.
    """
    norms = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        raise Mistake(f"{type(network).__name__} has no batch norm to make resolution-aware")
    fixed = {name for name in norms if any(part in name.split(".") for part in pinned)}
    if pinned and not fixed:
        raise Mistake(f"{type(network).__name__} has no batch norm in a {' or '.join(pinned)}")
    for name, norm in norms.items():
        network.set_submodule(name, ResolutionBatchNorm(norm, num_sets, name in fixed))


def use_set(network: nn.Module, index: int) -> None:
    """Makes set `index` the active one of every norm that is not pinned."""
    for module in network.modules():
        if isinstance(module, ResolutionBatchNorm) and not module.pinned:
            module.active = index


def touch(network: nn.Module, index: int) -> Tensor | float:
    """A zero that depends on all parameters of set `index`, so that data-parallel training finds them used."""
    nothing = [
        parameter[:0]
        for module in network.modules()
        if isinstance(module, ResolutionBatchNorm) and not module.pinned
        for parameter in module.sets[index].parameters()
        if parameter.requires_grad
    ]
    return torch.cat(nothing).sum() if nothing else 0.0
