"""Networks in plain torch. Importing this package registers our backbones with timm."""

from models import backbones

__all__ = ["backbones"]
