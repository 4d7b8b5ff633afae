"""What the parts of Dynamic Routing cost: in multiply-adds, and as the paper's tables count.

The paper adds two operations per element for a norm and one for an activation to the multiply-adds of convolutions. It
counts neither the resizing of maps nor their addition, and its expected cost leaves out what no gate decides over.

Reference: "Learning Dynamic Routing for Semantic Segmentation", arXiv 2003.10401, section 3.4 and equation 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.soft_gate import all_closed
from models.segmenters.dynamic_routing_cell import Cell
from models.segmenters.dynamic_routing_routes import NUM_LEVELS, TRANSFORMS

# Operations per element of a norm with its activation.
_NORM, _ACT = 2, 1


class CellGrid(Protocol):
    """A network with a grid of cells between a stem and a decoder, as `models.segmenters.DynamicRouting`."""

    num_layers: int
    num_classes: int
    width: int
    stem_chans: int
    layers: nn.ModuleList

    def cells(self) -> Iterator[tuple[int, int, Cell]]:
        """Each cell with its layer and level."""


def cell_costs(chans: int, elementwise: bool) -> dict[str, float]:
    """Cost of the parts of a cell per pixel of its input.

    Args:
        chans: Channels of the input.
        elementwise: Whether norms and activations are counted, as the paper does.

    Returns:
        Of the `body` and of the transforms `keep`, `up` and `down`.
    """
    norm, act = (_NORM, _ACT) if elementwise else (0, 0)
    return {
        "body": 2 * (9 * chans + chans**2 + norm * chans) + act * chans,
        "keep": act * chans,
        "up": act * chans + chans / 2 * (chans + norm + act),
        "down": act * chans + 2 * chans * (chans + norm + act) / 4,
    }


def gate_cost(chans: int, num_paths: int, pixels: float, small: bool) -> float:
    """Cost of a gate as the paper counts it.

    Args:
        chans: Channels of the input.
        num_paths: Gates.
        pixels: Pixels of the input.
        small: Whether the gate looks at a quarter of height and width.
    """
    return pixels / (16 if small else 1) * (chans / 2 * (chans + _NORM + _ACT) + chans / 2) + num_paths * chans / 2


def cost_tables(network: CellGrid, elementwise: bool) -> tuple[Tensor, Tensor]:
    """Costs that the gates of a network decide over, per pixel of the image.

    The body of the initial cell and what leaves the last layer are not among them.

    Args:
        network: Gives the grid and its channels.
        elementwise: See `cell_costs`.

    Returns:
        Of the bodies [layers + 1, levels] and of the transforms [layers + 1, levels, 3]; zero where there is none.
    """
    bodies = torch.zeros(len(network.layers), NUM_LEVELS)
    transforms = torch.zeros(len(network.layers), NUM_LEVELS, len(TRANSFORMS))
    for layer, level, cell in network.cells():
        costs = cell_costs(network.width << level, elementwise)
        share = 1 / (16 << 2 * level)
        if layer > 0:
            bodies[layer, level] = costs["body"] * share
        if layer < network.num_layers:
            for transform in cell.transforms:
                transforms[layer, level, TRANSFORMS.index(transform)] = costs[transform] * share
    return bodies, transforms


def route_taken(gates: Tensor) -> tuple[Tensor, Tensor]:
    """What an evaluation runs of a dynamic network, by its gates.

    Args:
        gates: [B, layers + 1, levels, 3]; those of cells that nothing reaches do not matter.

    Returns:
        Edges whose transform runs [B, layers + 1, levels, 3], and cells that have an input and so look at it
        [B, layers + 1, levels]; bool.
    """
    opened = (gates > 0) & ~all_closed(gates)[..., None]
    start = torch.zeros_like(opened[:, 0, :, 0])
    start[:, 0] = True
    reached = [start]
    for awake in opened.any(3).unbind(1)[:-1]:
        # Whatever a cell does, something is kept; one that is open sends all ways, of which some may be zero.
        sent = awake & reached[-1]
        reached.append(reached[-1] | F.pad(sent[:, 1:], (0, 1)) | F.pad(sent[:, :-1], (1, 0)))
    cells = torch.stack(reached, 1)
    return opened & cells[..., None], cells


def executed_macs(network: CellGrid, gates: Tensor, size: tuple[int, int]) -> Tensor:
    """Multiply-adds that an evaluation runs for each image, whatever its gates do not decide over included.

    Args:
        network: The network.
        gates: Gates of its forward pass [B, layers + 1, levels, 3], on the CPU.
        size: Height and width of the images, multiples of 32.

    Returns:
        [B], float64.
    """
    edges, cells = route_taken(gates)
    bodies, transforms = (table.double() * (size[0] * size[1]) for table in cost_tables(network, elementwise=False))
    gating = torch.zeros_like(bodies)
    for layer, level, cell in network.cells():
        chans, height, width = network.width << level, size[0] >> (level + 2), size[1] >> (level + 2)
        if layer == 0:
            bodies[layer, level] = cell_costs(chans, elementwise=False)["body"] * height * width
        if cell.gate is not None:
            pixels = (height // 4) * (width // 4) if cell.gate.small else height * width
            gating[layer, level] = chans // 2 * (chans * pixels + len(cell.transforms))
    decided = (edges.any(3) * bodies + cells * gating).sum((1, 2)) + (edges * transforms).sum((1, 2, 3))
    return decided + _stem_and_decoder_macs(network, size)


def paper_flops(network: CellGrid, gates: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """FLOPs of the grid as the paper counts them, for comparison with its tables.

    Args:
        network: The network.
        gates: Gates of a forward pass [B, layers + 1, levels, 3].
        size: Height and width of the images, multiples of 32.

    Returns:
        Expected cost [B], differentiable: `sum of max(gates) F_body + sum of gate F_transform`. And real cost [B]: the
        stem, every gate, and each body and transform that is open.
    """
    pixels = size[0] * size[1]
    bodies, transforms = (table.to(gates.device) * pixels for table in cost_tables(network, elementwise=True))
    expected = (gates.amax(3) * bodies).sum((1, 2)) + (gates * transforms).sum((1, 2, 3))
    opened = (gates.sum(3) > 1e-4) * bodies
    passing = (gates > 1e-4) * transforms
    gating = sum(
        gate_cost(network.width << level, len(cell.transforms), pixels / (16 << 2 * level), cell.gate.small)
        for layer, level, cell in network.cells()
        if layer > 0 and cell.gate is not None
    )
    real = opened.sum((1, 2)) + passing.sum((1, 2, 3)) + gating + stem_flops(network.stem_chans, network.width, size)
    return expected, real


def stem_flops(stem_chans: int, width: int, size: tuple[int, int]) -> float:
    """FLOPs of the stem as the paper counts them, for images of height and width `size`."""
    after = _NORM + _ACT
    pixels = size[0] * size[1]
    half = stem_chans * (27 + after) + stem_chans * (9 + stem_chans + after)
    return pixels / 4 * half + pixels / 16 * (9 * stem_chans + width * (stem_chans + after))


def decoder_flops(width: int, num_classes: int, size: tuple[int, int]) -> float:
    """FLOPs of the decoder as the paper counts them, for images of height and width `size`."""
    pixels = size[0] * size[1] / 16
    levels = [
        pixels / 4**level * (width << max(level - 1, 0)) * ((width << level) + _NORM + _ACT)
        for level in range(NUM_LEVELS)
    ]
    return sum(levels) + pixels * 9 * width * num_classes


def _stem_and_decoder_macs(network: CellGrid, size: tuple[int, int]) -> float:
    stem, width = network.stem_chans, network.width
    # The first convolution has no padding.
    half, quarter = (size[0] // 2 - 1) * (size[1] // 2 - 1), size[0] * size[1] // 16
    macs = half * stem * (27 + 9 + stem) + quarter * stem * (9 + width)
    levels = [(quarter >> (2 * level)) * (width << level) * (width << max(level - 1, 0)) for level in range(NUM_LEVELS)]
    return macs + sum(levels) + quarter * 9 * width * network.num_classes
