"""ResNets as first released: the first convolution of a bottleneck strides, a 1x1, and not the 3x3 after it.

detectron2's detectors start from these weights. With timm's options and names otherwise.

Reference: "Deep Residual Learning for Image Recognition", arXiv 1512.03385, table 1.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from models.mistakes import Mistake

__all__ = ["MSRABottleneck", "MSRAResNet"]


class MSRABottleneck(Bottleneck):
    """Bottleneck that strides at its first convolution; arguments of timm's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


class MSRAResNet(ResNet):
    """ResNet of `MSRABottleneck`s whose stem may have another width.

    Args:
        stem_chans: Channels of the 7x7 convolution.
        in_chans: Channels of the images.
        kwargs: Further arguments of timm's ResNet.

    Raises:
        Mistake: An odd number of channels of the stem.
    """

    def __init__(self, stem_chans: int = 64, in_chans: int = 3, **kwargs: Any) -> None:
        if stem_chans % 2:
            raise Mistake(f"stem_chans is even, not {stem_chans}")
        # The width of timm's plain stem is fixed, that of its deep one is not: take that, and a plain convolution.
        super().__init__(in_chans=in_chans, stem_type="deep", stem_width=stem_chans // 2, **kwargs)
        stem = nn.Conv2d(in_chans, stem_chans, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", stem)


_ENTRY = {"pool_size": (7, 7), "interpolation": "bilinear", "first_conv": "conv1", "classifier": "fc"}
default_cfgs = generate_default_cfgs({"resnet50_msra": _ENTRY, "resnet101_msra": _ENTRY})


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    return build_model_with_cfg(MSRAResNet, name, pretrained, block=MSRABottleneck, **kwargs)


@register_model
def resnet50_msra(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50; 25,557,032 parameters."""
    return _create("resnet50_msra", pretrained, {"layers": (3, 4, 6, 3), **kwargs})


@register_model
def resnet101_msra(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101; 44,549,160 parameters."""
    return _create("resnet101_msra", pretrained, {"layers": (3, 4, 23, 3), **kwargs})
