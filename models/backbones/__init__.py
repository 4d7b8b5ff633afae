"""Feature extractors; importing this package makes every one of them known to `timm.create_model`."""

from models.backbones import convnext_dense, convnext_isotropic, convnext_ladder

__all__ = ["convnext_dense", "convnext_isotropic", "convnext_ladder"]
