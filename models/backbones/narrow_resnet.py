"""ResNets of bottleneck blocks at any width, under the names of torchvision's weights.

timm's ResNet has free widths but for a plain stem, which is always 64 channels wide.
"""

from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet, downsample_conv
from torch import nn


class NarrowResNet(ResNet):
    """timm's ResNet with a stem of `width` channels and stages of 1, 2, 4 and 8 times as many, times 4 at their ends.

    Args:
        layers: Blocks of each of the four stages.
        width: Channels of the stem; 64 for the published networks.
        in_chans: Channels of the images.
        options: Further arguments of timm's `ResNet`.
    """

    def __init__(self, layers: Sequence[int], width: int, in_chans: int = 3, **options: Any) -> None:
        channels = tuple(width * 2**stage for stage in range(4))
        block: Any = Bottleneck
        super().__init__(block, tuple(layers), in_chans=in_chans, channels=channels, **options)
        self.set_submodule("conv1", nn.Conv2d(in_chans, width, 7, 2, 3, bias=False))
        self.set_submodule("bn1", nn.BatchNorm2d(width))
        self.set_submodule("layer1.0", Bottleneck(width, width, downsample=downsample_conv(width, 4 * width, 1)))
        self.feature_info[0]["num_chs"] = width
        self.init_weights()


default_cfgs = generate_default_cfgs(
    {"narrow_resnet": {"pool_size": (7, 7), "first_conv": "conv1", "classifier": "fc"}}
)


@register_model
def narrow_resnet(pretrained: bool = False, **kwargs: Any) -> NarrowResNet:
    """A quarter as wide as ResNet-26 and with its two blocks a stage, or of other `layers` and `width`."""
    return build_model_with_cfg(
        NarrowResNet, "narrow_resnet", pretrained, **{"layers": (2, 2, 2, 2), "width": 16, **kwargs}
    )
