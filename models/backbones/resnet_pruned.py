"""ImageNet ResNets at the widths and depths that published methods prune them to, under the names of timm's weights.

Reference: "Rethinking the Value of Network Pruning", arXiv 1810.05270, and the methods that it compares: L1-norm
(1608.08710), ThiNet (1707.06342), regression (1707.06168) and Sparse Structure Selection (1707.01213).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from models.layers.channel_selection import ChannelSelection

# Channels between the convolutions of a block; with three numbers the first is how many are picked of what it reads.
Inner = Sequence[int]


class PrunedResNet(ResNet):
    """timm's ResNet with blocks that are narrower inside, or that lack what a shortcut is added to.

    Args:
        block: timm's `BasicBlock` or `Bottleneck`.
        layers: Blocks of each of the four stages.
        inner: Channels inside of each block, one number or two by its kind, or with the picked ones before; None for
            those of timm's.
        biased_shortcuts: Whether the convolutions of shortcuts have biases.
        shortcuts_only: Stages, counted from 0, whose first block is its shortcut alone.
        options: Further arguments of timm's `ResNet`.
    """

    def __init__(
        self,
        block: Any,
        layers: Sequence[int],
        inner: Sequence[Inner] | None = None,
        biased_shortcuts: bool = False,
        shortcuts_only: Sequence[int] = (),
        **options: Any,
    ) -> None:
        super().__init__(block, tuple(layers), zero_init_last=False, **options)
        stages: list[Any] = [self.layer1, self.layer2, self.layer3, self.layer4]
        blocks = [block for stage in stages for block in stage]
        for each, widths in zip(blocks, inner or [], strict=inner is not None):
            narrow(each, widths)
        for stage in stages if biased_shortcuts else []:
            if (shortcut := stage[0].downsample) is not None:
                shortcut[0] = _like(shortcut[0], bias=True)
        for i in shortcuts_only:
            stages[i][0] = ShortcutOnly(stages[i][0].downsample)
        self.init_weights(zero_init_last=False)


class ShortcutOnly(nn.Module):
    """What a shortcut and a ReLU make of a block's input.

    Args:
        downsample: The shortcut.
    """

    def __init__(self, downsample: nn.Module) -> None:
        super().__init__()
        self.downsample = downsample
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_chans, H / stride, W / stride]."""
        return self.act(self.downsample(x))


class SelectedConv(nn.Conv2d):
    """A convolution of some channels of a map.

    Args:
        in_chans: Channels of the map.
        kept: How many of them are read.
        options: Further arguments of the convolution.
    """

    def __init__(self, in_chans: int, kept: int, *options: Any, **further: Any) -> None:
        super().__init__(kept, *options, **further)
        self.select = ChannelSelection(in_chans, kept)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_chans, H', W']."""
        return super().forward(self.select(x))


def narrow(block: BasicBlock | Bottleneck, widths: Inner) -> None:
    """Gives a block of timm's other widths inside, in place and with fresh weights.

    Args:
        block: Block.
        widths: Channels between its convolutions, or before them (of the block's input) and between.
    """
    picked = len(widths) == 3
    first, last = widths[1 if picked else 0], widths[-1]
    before = block.conv1.in_channels
    if picked:
        block.conv1 = SelectedConv(before, widths[0], first, 1, bias=False)
    else:
        block.conv1 = _like(block.conv1, out_chans=first)
    block.bn1 = nn.BatchNorm2d(first)
    if isinstance(block, BasicBlock):
        block.conv2 = _like(block.conv2, in_chans=first)
    else:
        block.conv2 = _like(block.conv2, in_chans=first, out_chans=last)
        block.bn2 = nn.BatchNorm2d(last)
        block.conv3 = _like(block.conv3, in_chans=last)


def _like(conv: Any, in_chans: int | None = None, out_chans: int | None = None, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(
        in_chans or conv.in_channels,
        out_chans or conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        bias=bias,
    )


_LAYERS = (3, 4, 6, 3)
_L1_A = [64, 44, 44, 128, 89, 89, 128, 256, *[179] * 4, 256, *[512] * 3]
_L1_B = [64, 32, 32, 128, 51, 51, 128, 256, *[153] * 4, 256, *[512] * 3]
_REGRESSION_2X = [
    *((35, 64, 55), (101, 51, 39), (97, 50, 37)),
    *((144, 128, 106), (205, 105, 72), (198, 105, 72), (288, 128, 110)),
    *((278, 256, 225), (418, 209, 147), (407, 204, 158), (423, 212, 155), (412, 211, 148), (595, 256, 213)),
    *((606, 512, 433), (1222, 512, 437), (1147, 512, 440)),
]
_BASIC: Any = BasicBlock
_BOTTLENECK: Any = Bottleneck


def _thinet(*widths: int) -> dict[str, Any]:
    inner = [(width, width) for width, blocks in zip(widths, _LAYERS, strict=True) for _ in range(blocks)]
    return {"block": _BOTTLENECK, "layers": _LAYERS, "inner": inner, "biased_shortcuts": True}


def _sss(layers: Sequence[int], shortcuts_only: Sequence[int]) -> dict[str, Any]:
    return {"block": _BOTTLENECK, "layers": layers, "shortcuts_only": shortcuts_only}


_NETWORKS: dict[str, dict[str, Any]] = {
    "resnet34_l1_a": {"block": _BASIC, "layers": _LAYERS, "inner": [(width,) for width in _L1_A]},
    "resnet34_l1_b": {"block": _BASIC, "layers": _LAYERS, "inner": [(width,) for width in _L1_B]},
    "resnet50_biased": {"block": _BOTTLENECK, "layers": _LAYERS, "biased_shortcuts": True},
    "resnet50_thinet_30": _thinet(19, 38, 76, 153),
    "resnet50_thinet_50": _thinet(32, 64, 128, 256),
    "resnet50_thinet_70": _thinet(44, 89, 179, 358),
    "resnet50_regression_2x": {
        **{"block": _BOTTLENECK, "layers": _LAYERS, "inner": _REGRESSION_2X, "biased_shortcuts": True},
    },
    "resnet50_sss_41": _sss((1, 4, 6, 3), [0]),
    "resnet50_sss_32": _sss((2, 4, 4, 1), [0]),
    "resnet50_sss_26": _sss((1, 3, 6, 1), [0, 1, 2]),
}
default_cfgs = generate_default_cfgs(
    {name: {"pool_size": (7, 7), "first_conv": "conv1", "classifier": "fc"} for name in _NETWORKS}
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> PrunedResNet:
    return build_model_with_cfg(PrunedResNet, name, pretrained, **{**_NETWORKS[name], **kwargs})


@register_model
def resnet34_l1_a(pretrained: bool = False, **kwargs: Any) -> PrunedResNet:
    """ResNet-34 with 30% of the filters inside of its blocks pruned by their L1-norms, in three of the stages."""
    return _create("resnet34_l1_a", pretrained, kwargs)


@register_model
def resnet34_l1_b(pretrained: bool = False, **kwargs: Any) -> PrunedResNet:
    """ResNet-34 with 50, 60 and 40% of the filters inside of its blocks pruned by their L1-norms."""
    return _create("resnet34_l1_b", pretrained, kwargs)


@register_model
def resnet50_biased(pretrained: bool = False, **kwargs: Any) -> PrunedResNet:
    """ResNet-50 with biases in the convolutions of its shortcuts, which ThiNet and regression prune."""
    return _create("resnet50_biased", pretrained, kwargs)


@register_model
def resnet50_thinet_30(pretrained: bool = False, **kwargs: Any) -> PrunedResNet:
    """ResNet-50 of which ThiNet keeps 30% inside of the blocks."""
    return _create("resnet50_thinet_30", pretrained, kwargs)


@register_model
def resnet50_thinet_50(pretrained: bool = False, **kwargs: Any) -> PrunedResNet:
    """ResNet-50 of which ThiNet keeps 50% inside of the blocks."""
    return _create("resnet50_thinet_50", pretrained, kwargs)


@register_model
def resnet50_thinet_70(pretrained: bool = False, **kwargs: Any) -> PrunedResNet:
    """ResNet-50 of which ThiNet keeps 70% inside of the blocks."""
    return _create("resnet50_thinet_70", pretrained, kwargs)


@register_model
def resnet50_regression_2x(pretrained: bool = False, **kwargs: Any) -> PrunedResNet:
    """ResNet-50 pruned by regression, whose blocks read some channels of the map that they share."""
    return _create("resnet50_regression_2x", pretrained, kwargs)


@register_model
def resnet50_sss_41(pretrained: bool = False, **kwargs: Any) -> PrunedResNet:
    """ResNet-50 of which Sparse Structure Selection leaves 41 layers."""
    return _create("resnet50_sss_41", pretrained, kwargs)


@register_model
def resnet50_sss_32(pretrained: bool = False, **kwargs: Any) -> PrunedResNet:
    """ResNet-50 of which Sparse Structure Selection leaves 32 layers."""
    return _create("resnet50_sss_32", pretrained, kwargs)


@register_model
def resnet50_sss_26(pretrained: bool = False, **kwargs: Any) -> PrunedResNet:
    """ResNet-50 of which Sparse Structure Selection leaves 26 layers."""
    return _create("resnet50_sss_26", pretrained, kwargs)
