"""Lengths and angles of weights that are looked at in blocks: a whole layer, groups of its filters, or each filter.

A weight of several tensors, such as a kernel with its bias, is a sequence of them; a block has an equal share of the
rows of each. All is computed in float32 at least, on the weights' own device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Of the reference optimiser, in its denominators.
REFERENCE_EPS = 1e-5


def in_blocks(tensor: Tensor, blocks: int) -> Tensor:
    """A tensor whose first axis counts filters, as [blocks, elements of a block], in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).reshape(blocks, -1)


def block_dot(a: Sequence[Tensor], b: Sequence[Tensor], blocks: int = 1) -> Tensor:
    """Inner products of two weights by blocks.

    Args:
        a, b: tensors [filters, ...] of the same shapes, one for one.
        blocks: how many equal parts the filters are taken in.

    Returns:
        [blocks].
    """
    pairs = [(in_blocks(one, blocks), in_blocks(other, blocks)) for one, other in zip(a, b, strict=True)]
    if blocks == 1:
        products = [torch.dot(one[0], other[0])[None] for one, other in pairs]
    else:
        products = [torch.linalg.vecdot(one, other) for one, other in pairs]
    return products[0] if len(products) == 1 else torch.stack(products).sum(0)


def turn_parts(before: Sequence[Tensor], after: Sequence[Tensor], blocks: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """What a step does to a weight: how long that was, how much of the step is along it, and how long the rest is.

    The part along the weight is taken away before the rest is measured: what small angles ask for, which no cosine in
    float32 knows below 1e-3.

    Args:
        before, after: the weight's tensors [filters, ...].
        blocks: how many equal parts the filters are taken in.

    Returns:
        Squared length before, the step along the weight as a share of its length, and the squared length of the step
        across it; [blocks] each.
    """
    square = block_dot(before, before, blocks)
    steps = [in_blocks(b, blocks) - in_blocks(a, blocks) for a, b in zip(before, after, strict=True)]
    own = [in_blocks(a, blocks) for a in before]
    along = block_dot(own, steps, blocks) / square
    across = [step.addcmul_(a, -along[:, None]) for a, step in zip(own, steps, strict=True)]
    return square, along, block_dot(across, across, blocks)


def angle_of(square: Tensor, along: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    """Angles of a step from its parts, in radians: of the whole weight [], and of each block [blocks].

    Args:
        square, along, across: what `turn_parts` returns.
    """
    whole = square.sum()
    mean = (square * along).sum() / whole
    # What is along each block is across the whole weight where blocks grow or shrink unequally.
    rest = (across + (along - mean).square() * square).sum()
    layer = torch.atan2(rest.sqrt(), whole.sqrt() * (1 + mean))
    return layer, torch.atan2(across.sqrt(), square.sqrt() * (1 + along))


def angular_update(before: Tensor | Sequence[Tensor], after: Tensor | Sequence[Tensor], blocks: int = 1) -> Tensor:
    """The angle between a weight before and after a step, definition 3 of arXiv 2006.08419.

    Args:
        before, after: tensors [filters, ...], or sequences of them that move as one.
        blocks: 1 for the angle of the whole weight; as many as filters for that of each filter.

    Returns:
        Radians, [blocks].
    """
    one, other = ([each] if isinstance(each, Tensor) else each for each in (before, after))
    return angle_of(*turn_parts(one, other, blocks))[1]


def unit_gradient(weight: Tensor | Sequence[Tensor], gradient: Tensor | Sequence[Tensor], blocks: int = 1) -> Tensor:
    """Norm of the gradient that a scale-invariant weight would have at length 1: |g| |w|.

    Args:
        weight, gradient: tensors [filters, ...], or sequences of them; the gradient without weight decay.
        blocks: see `angular_update`.

    Returns:
        [blocks].
    """
    w, g = ([each] if isinstance(each, Tensor) else each for each in (weight, gradient))
    return (block_dot(w, w, blocks) * block_dot(g, g, blocks)).sqrt()


def tangential_update(weight: Tensor, buffer: Tensor, lr: float) -> Tensor:
    """The angular update as the published optimiser estimates it, without a copy of the weights: see below.

    lr |v| sin(w, v) / |w|, the length of a step across the weight over the weight's length: within one or two percent
    of the angle at 0.02 radians. Reference: `AugularSGD` of Megvii-BaseDetection/cvpods.

    Args:
        weight: before the step, any shape.
        buffer: v, what the step subtracts lr times: of SGD with momentum its buffer, decay included.
        lr: learning rate.

    Returns:
        Radians, [].
    """
    w, v = weight.norm(), buffer.norm()
    cosine = (weight * buffer).sum() / (w * v + REFERENCE_EPS)
    sine = (1 - cosine.square().clamp(max=1)).sqrt()
    return lr * v * sine / (w + REFERENCE_EPS)


def turned(before: Sequence[Tensor], after: Sequence[Tensor], angle: float, blocks: int = 1) -> list[Tensor]:
    """A weight turned towards where a step went, by an angle of one's own, at the length that it had.

    Args:
        before, after: the weight's tensors [filters, ...].
        angle: of each block, in radians; a block that the step does not turn stays as it was.
        blocks: how many equal parts the filters are taken in.

    Returns:
        Tensors of the shapes and types of `before`.
    """
    square, along, across = turn_parts(before, after, blocks)
    turns = across > 0
    towards = torch.where(turns, math.sin(angle) * (square / across.where(turns, 1.0)).sqrt(), 0.0)
    keep = torch.where(turns, math.cos(angle), 1.0)
    found = []
    for one, other in zip(before, after, strict=True):
        own = in_blocks(one, blocks)
        rest = in_blocks(other, blocks) - (1 + along)[:, None] * own
        found.append((keep[:, None] * own + towards[:, None] * rest).reshape(one.shape).to(one.dtype))
    return found
