"""Small networks of the deformable family."""

from typing import Any

import torch

from models.detectors.deformable_detr import DeformableDETR
from models.detectors.solq import SOLQ

SMALL: dict[str, Any] = {
    "backbone": "narrow_resnet",
    "backbone_options": {"layers": (1, 1, 1, 1), "width": 2},
    "num_classes": 5,
    "num_queries": 6,
    "hidden_dim": 16,
    "norm_groups": 4,
    "num_heads": 4,
    "feedforward_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_points": 2,
    "decoder_points": 3,
    "dropout": 0.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "single_scale": {"num_levels": 1},
    "dc5": {"num_levels": 1, "backbone_options": SMALL["backbone_options"] | {"output_stride": 16}},
    "refine": {"refine": True},
    "two_stage": {"refine": True, "two_stage": True},
}


def small(**changes: Any) -> DeformableDETR:
    torch.manual_seed(0)
    return DeformableDETR(**SMALL | changes)


def small_solq(**changes: Any) -> SOLQ:
    torch.manual_seed(0)
    return SOLQ(**SMALL | {"num_coefficients": 12, "mask_size": 16, "vector_hidden_dim": 8} | changes)
