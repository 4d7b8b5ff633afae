"""Feature extractors; importing this package makes every one of them known to `timm.create_model`."""

from models.backbones import (
    condconv,
    container,
    container_pam,
    convnext_dense,
    convnext_isotropic,
    convnext_ladder,
    dynamic_conv,
    narrow_resnet,
    plain_conv,
    resnet_msra,
    resnet_pruned,
    separable,
    shufflenet_drconv,
    swin_dense,
    vit_dino,
)

__all__ = [
    "condconv",
    "container",
    "container_pam",
    "convnext_dense",
    "convnext_isotropic",
    "convnext_ladder",
    "dynamic_conv",
    "narrow_resnet",
    "plain_conv",
    "resnet_msra",
    "resnet_pruned",
    "separable",
    "shufflenet_drconv",
    "swin_dense",
    "vit_dino",
]
