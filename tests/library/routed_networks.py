"""Tiny Dynamic Routing networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.segmenters.dynamic_routing import DynamicRouting


def tiny(**options: Any) -> DynamicRouting:
    torch.manual_seed(0)
    return DynamicRouting(**{"num_classes": 5, "num_layers": 5, "width": 4, **options})


def undecided(**options: Any) -> DynamicRouting:
    """A network whose gates differ from image to image, with norms that have seen data."""
    network = tiny(**options).train()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        network(images(6, 128, 128) if network.small_gate else images())
    for _, _, cell in network.cells():
        assert cell.gate is not None
        nn.init.normal_(cell.gate.score.weight, std=3.0, generator=generator)
        nn.init.normal_(cell.gate.score.bias, generator=generator)  # type: ignore[arg-type]
    return network.eval()


def images(number: int = 6, height: int = 64, width: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    contrast = 3 * torch.rand(number, 1, 1, 1, generator=generator)
    return torch.randn(number, 3, 1, 1, generator=generator) + contrast * torch.randn(
        number, 3, height, width, generator=generator
    )
