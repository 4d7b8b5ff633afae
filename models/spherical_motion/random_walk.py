"""A scale-invariant weight that learns nothing: what an optimiser alone does to its angle and its norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.spherical_motion.geometry import angular_update, block_dot


@dataclass(frozen=True)
class Walk:
    """What an optimiser did.

    Args:
        angles: of each step and vector, in radians [steps, vectors].
        norms: before each step [steps, vectors].
        squares: squared norms of the unit gradients [steps, vectors].
    """

    angles: Tensor
    norms: Tensor
    squares: Tensor


def random_walk(
    optimizer: Callable[[Iterable[Tensor]], Optimizer],
    steps: int,
    vectors: int = 4,
    size: int = 2048,
    length: float = 1.0,
) -> Walk:
    """Lets an optimiser move vectors by random gradients across them, and looks on.

    The gradients are what a loss <x, w> / |w| with a new Gaussian x at each step has: they stand on w and shrink as it
    grows. So the equilibrium of any optimiser can be measured in seconds, with a theory or without.

    Args:
        optimizer: called with the vectors.
        steps: how many.
        vectors: how many vectors walk side by side, as rows of one tensor.
        size: elements of each.
        length: of each at the start.
    """
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(length * nn.functional.normalize(torch.randn(vectors, size, generator=generator)))
    moves = optimizer([weight])
    angles, norms, squares = [], [], []
    for _ in range(steps):
        before = weight.detach().clone()
        norm = before.norm(dim=1, keepdim=True)
        unit = before / norm
        noise = torch.randn(vectors, size, generator=generator)
        weight.grad = (noise - (noise * unit).sum(1, keepdim=True) * unit) / norm
        norms.append(norm[:, 0])
        squares.append(block_dot([weight.grad], [weight.grad], vectors) * norm[:, 0].square())
        moves.step()
        angles.append(angular_update(before, weight.detach(), vectors))
    return Walk(torch.stack(angles), torch.stack(norms), torch.stack(squares))
