"""What a step does to scale-invariant weights, measured on their device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.spherical_motion.geometry import angle_of, block_dot, turn_parts
from models.spherical_motion.invariance import Invariant


@dataclass(frozen=True)
class Motion:
    """A step of some weights.

    Args:
        layers: of each weight as a whole [weights, 6]: |w|^2 and |g|^2 before the step, <w, g>, |v|^2, <v, g> and the
            angle in radians; g the gradient without decay, v the momentum before the step, 0 where there is none.
        blocks: of each weight [3, blocks]: |w|^2, |g|^2 and the angle of its blocks.
    """

    layers: Tensor
    blocks: list[Tensor]


class Measurement:
    """Looks at weights before and after a step; they are copied in between.

    Args:
        weights: which.
        parameters: of the module, by name.
        gradients: of the step, by the same names; those that are missing count as zero.
        buffers: momentum before the step, by the same names, as far as there is any.
        parts: whether blocks are measured one by one; else a weight without loose blocks is one, which takes less.
    """

    @torch.no_grad()
    def __init__(
        self,
        weights: Sequence[Invariant],
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        parts: bool,
    ) -> None:
        self.weights, self.parameters = weights, parameters
        self._blocks = [each.blocks if parts or each.loose else 1 for each in weights]
        self.before = copies(weights, parameters)
        self._sums: list[list[Tensor]] = []
        for each, w, blocks in zip(weights, self.before, self._blocks, strict=True):
            g = each.view(_filled(each, parameters, gradients))
            momentum = [torch.zeros(blocks, device=w[0].device)] * 2
            if any(name in buffers for name in each.tensors):
                v = each.view(_filled(each, parameters, buffers))
                momentum = [block_dot(v, v, blocks), block_dot(v, g, blocks)]
            self._sums.append([block_dot(g, g, blocks), block_dot(w, g, blocks), *momentum])

    @torch.no_grad()
    def motion(self) -> Motion:
        """What happened since."""
        layers, blocks = [], []
        for each, before, sums, count in zip(self.weights, self.before, self._sums, self._blocks, strict=True):
            square, along, across = turn_parts(before, each.view(self.parameters), count)
            gradient, product, buffer, cross = sums
            columns = [square, gradient, product, buffer, cross, along, across]
            if each.loose:
                kept = torch.tensor([i for i in range(each.blocks) if i not in set(each.loose)], device=square.device)
                columns = [column[kept] for column in columns]
            square, gradient, product, buffer, cross, along, across = columns
            angle, angles = angle_of(square, along, across)
            totals = [column.sum() for column in (square, gradient, product, buffer, cross)]
            layers.append(torch.stack([*totals, angle]))
            blocks.append(torch.stack([square, gradient, angles]))
        return Motion(torch.stack(layers), blocks)


def copies(weights: Sequence[Invariant], parameters: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """Copies of the tensors of weights, filters first.

    Args:
        weights: which.
        parameters: by name.
    """
    return [[tensor.detach().clone() for tensor in each.view(parameters)] for each in weights]


def angles_between(
    weights: Sequence[Invariant], before: Sequence[Sequence[Tensor]], parameters: Mapping[str, Tensor]
) -> Tensor:
    """Angles of weights as they were and as they are, in radians [weights].

    Args:
        weights: which.
        before: what `copies` returned.
        parameters: by name.
    """
    parts = [turn_parts(w, each.view(parameters), each.blocks) for each, w in zip(weights, before, strict=True)]
    return torch.stack([angle_of(*each)[0] for each in parts])


def _filled(weight: Invariant, parameters: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    missing = {name: torch.zeros_like(parameters[name]) for name in weight.tensors if name not in found}
    return {name: found[name] if name in found else missing[name] for name in weight.tensors}
