"""A network of separable blocks that is small enough for experiments of a minute on one CPU core.

At its default size it has 2,274 parameters for ten classes, nearly half of them in five 1x1 convolutions: what a
dynamic kernel adds to these shows within a few epochs of CIFAR-10.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn

from models.mistakes import Mistake

__all__ = ["separable"]


def separable(
    stem: int = 6, widths: Sequence[int] = (8, 12, 16, 20, 20), strides: Sequence[int] = (1, 2, 1, 2, 1), **kwargs: Any
) -> EfficientNet:
    """A 3x3 convolution of stride 2, and blocks of a depthwise 3x3 and a 1x1 convolution, without shortcuts.

    Convolutions start as PyTorch's do. timm's EfficientNets start from the fan-out, which is several times as large
    for narrow 1x1 convolutions.

    Args:
        stem: Channels of the first convolution.
        widths: Channels of the blocks.
        strides: Strides of the blocks.
        kwargs: Arguments of timm's `EfficientNet`.

    Raises:
        Mistake: Another number of strides than of widths.
    """
    if len(widths) != len(strides):
        raise Mistake(f"every block has a width and a stride, not {list(widths)} and {list(strides)}")
    blocks = [[f"dsa_r1_k3_s{stride}_c{width}_noskip"] for width, stride in zip(widths, strides, strict=True)]
    network = EfficientNet(
        decode_arch_def(blocks),
        num_features=0,
        stem_size=stem,
        fix_stem=True,
        round_chs_fn=partial(round_channels, divisor=1),
        **kwargs,
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    return network


default_cfgs = generate_default_cfgs(
    {
        "separable_tiny": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "conv_stem",
            "classifier": "classifier",
        }
    }
)


@register_model
def separable_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Five blocks of up to 20 channels: 2,274 parameters for ten classes, 114 thousand multiply-adds at 32."""
    feature_cfg = {"out_indices": (0, 1, 2), "flatten_sequential": True}
    return build_model_with_cfg(separable, "separable_tiny", pretrained, feature_cfg=feature_cfg, **kwargs)
