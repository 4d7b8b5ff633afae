"""Small networks of the dense family, and data for them."""

from typing import Any

import torch
from torch import Tensor

from models.detectors.detr import DETR
from models.detectors.smca import SMCA

SMALL: dict[str, Any] = {
    "backbone": "plain_conv",
    "backbone_options": {"widths": [8, 8, 16, 16]},
    "frozen_stages": 0,
    "num_classes": 5,
    "num_queries": 6,
    "hidden_dim": 16,
    "num_heads": 4,
    "feedforward_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
}


def small(kind: type[DETR] = DETR, **changes: Any) -> DETR:
    torch.manual_seed(0)
    return kind(**SMALL | changes)


def smca(**changes: Any) -> SMCA:
    network = small(SMCA, **changes)
    assert isinstance(network, SMCA)
    return network


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in ((64, 80), (48, 64))]


def targets() -> list[dict[str, Any]]:
    """Two objects in the first image, none in the second."""
    boxes = torch.tensor([[5.0, 8.0, 40.0, 50.0], [30.0, 2.0, 70.0, 30.0]])
    masks = torch.zeros(2, 64, 80, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    empty = {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)}
    return [
        {"boxes": boxes, "labels": torch.tensor([4, 0]), "masks": masks},
        empty | {"masks": torch.zeros(0, 48, 64, dtype=torch.bool)},
    ]
