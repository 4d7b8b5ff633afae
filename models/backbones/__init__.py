"""Feature extractors; importing this package makes every one of them known to `timm.create_model`."""

from models.backbones import (
    condconv,
    convnext_dense,
    convnext_isotropic,
    convnext_ladder,
    dynamic_conv,
    separable,
    shufflenet_drconv,
)

__all__ = [
    "condconv",
    "convnext_dense",
    "convnext_isotropic",
    "convnext_ladder",
    "dynamic_conv",
    "separable",
    "shufflenet_drconv",
]
