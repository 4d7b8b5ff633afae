"""Which sizes of images a backbone takes."""

import math
from typing import Any

from torch import nn


def size_divisor(backbone: nn.Module) -> int:
    """The number whose multiples the sides of images have to be, so that every feature map is exactly as fine as told.

    A map of reduction r then has H / r rows and W / r columns, and windows that a network divides its maps into, such
    as MaxViT's, fit. A backbone that knows better has an attribute `size_divisor`.

    Args:
        backbone: What `timm.create_model(name, features_only=True)` returns, of timm's networks or ours.

    Returns:
        Pixels; 32 for a ResNet, ConvNeXt or Swin whose last map is handed out. timm's Swin, Swin V2 and ours fill up
        their windows themselves.
    """
    stated = getattr(backbone, "size_divisor", None)
    if stated is not None:
        return int(stated)
    info: Any = backbone.feature_info
    windows = (side for module in backbone.modules() for side in getattr(module, "partition_size", ()))
    return math.lcm(*info.reduction()) * math.lcm(*windows)
