"""Blocks of RANet: dense ones, and ones that take in the features of the sub-network before.

Reference: "Resolution Adaptive Networks for Efficient Inference", CVPR 2020, arXiv 2003.07326, section 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from models.layers.resize import resize
from models.mistakes import Mistake


class Bottleneck(nn.Sequential):
    """1x1 convolution to min(in, factor * out) channels and 3x3 convolution, with norm and ReLU.

    Args:
        in_chans, out_chans: Channels of the maps that come in and go out.
        factor: Width between the convolutions, as a multiple of `out_chans`.
        stride: Stride of the 3x3 convolution.
        pre_activation: Norm and ReLU before each convolution instead of after it.
    """

    def __init__(
        self, in_chans: int, out_chans: int, factor: int, stride: int = 1, pre_activation: bool = False
    ) -> None:
        hidden = min(in_chans, factor * out_chans)
        layers: list[nn.Module] = []
        for conv in (
            nn.Conv2d(in_chans, hidden, 1, bias=False),
            nn.Conv2d(hidden, out_chans, 3, stride, 1, bias=False),
        ):
            norm = nn.BatchNorm2d(conv.in_channels if pre_activation else conv.out_channels)
            act = nn.ReLU(inplace=True)
            layers += [norm, act, conv] if pre_activation else [conv, norm, act]
        super().__init__(*layers)


class DenseLayer(nn.Module):
    """Adds `growth` channels to a map: [B, C, H, W] to [B, C + growth, H, W]."""

    def __init__(self, in_chans: int, growth: int, factor: int) -> None:
        super().__init__()
        self.own = Bottleneck(in_chans, growth, factor)

    def forward(self, x: Tensor) -> Tensor:
        """The map and what the layer makes of it."""
        return torch.cat([x, self.own(x)], 1)


class FusionLayer(nn.Module):
    """Adds `growth` channels to a map, some of them computed from a map of the sub-network before.

    Args:
        in_chans, low_chans: Channels of the two maps.
        growth: Channels that are added.
        factor, low_factor: Bottleneck factors of the two.
        compress: Share of the added channels that come from the sub-network before.
        down: Whether the map shrinks to half its height and width.
    """

    def __init__(
        self, in_chans: int, low_chans: int, growth: int, factor: int, low_factor: int, compress: float, down: bool
    ) -> None:
        super().__init__()
        from_low = int(growth * compress)
        self.own = Bottleneck(in_chans, growth - from_low, factor, stride=2 if down else 1)
        self.low = Bottleneck(low_chans, from_low, low_factor)

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        """Maps [B, C, H, W] and [B, D, h, w] to [B, C + growth, H, W], or half of H and W."""
        new = self.own(x)
        size = new.shape[-2:]
        return torch.cat([resize(x, size, "corners"), resize(self.low(low), size, "corners"), new], 1)


class DenseBlock(nn.Module):
    """Dense layers, and at some places a 1x1 convolution that narrows the map.

    The features that it emits for the next sub-network are its input and the map after each layer. Each is the first
    channels of the following one, so one map holds them all (see `features`).

    Args:
        in_chans: Channels that come in.
        depth: Layers.
        growth: Channels that a layer adds.
        factor: Bottleneck factor.
        reduction: Share of the channels that the 1x1 convolution leaves; None for no such convolution.
    """

    def __init__(self, in_chans: int, depth: int, growth: int, factor: int, reduction: float | None) -> None:
        super().__init__()
        self.feature_chans = [in_chans + layer * growth for layer in range(depth + 1)]
        self.layers = nn.Sequential(*(DenseLayer(chans, growth, factor) for chans in self.feature_chans[:-1]))
        self.transition, self.out_chans = _transition(self.feature_chans[-1], reduction)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, in_chans, H, W] to [B, out_chans, H, W], and the map that holds all features."""
        x = self.layers(x)
        return self.transition(x), [x]


class FusionBlock(nn.Module):
    """Layers that take in the features of one block of the sub-network before.

    Args:
        in_chans: Channels that come in.
        low_chans: Channels of the features of that block, one number more than there are layers here.
        growth: Channels that a layer adds.
        factor, low_factor: Bottleneck factors of this sub-network and of the one before.
        compress: Share of the channels computed from the sub-network before, in each layer and after the last.
        down: Whether the last layer halves height and width.
        reduction: See `DenseBlock`.
    """

    def __init__(
        self,
        in_chans: int,
        low_chans: Sequence[int],
        growth: int,
        factor: int,
        low_factor: int,
        compress: float,
        down: bool,
        reduction: float | None,
    ) -> None:
        super().__init__()
        self.low_chans = list(low_chans)
        depth = len(self.low_chans) - 1
        self.feature_chans = [in_chans + layer * growth for layer in range(depth + 1)]
        self.layers = nn.ModuleList(
            FusionLayer(chans, low, growth, factor, low_factor, compress, down and layer == depth - 1)
            for layer, (chans, low) in enumerate(zip(self.feature_chans[:-1], self.low_chans[:-1], strict=True))
        )
        self.down = down
        out_chans = self.feature_chans[-1]
        from_low = int(out_chans * compress)
        self.last = Conv2dNormActivation(self.low_chans[-1], from_low, 1)
        self.transition, self.out_chans = _transition(out_chans + from_low, reduction)

    def forward(self, x: Tensor, low: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """[B, in_chans, H, W] to [B, out_chans, H', W'], and the maps that hold all features (see `features`).

        Args:
            x: Map of this sub-network.
            low: Features of the block of the sub-network before, [B, low_chans[l], h, w].
        """
        before = x
        for layer, low_feature in zip(self.layers, low[:-1], strict=True):
            before, x = x, layer(x, low_feature)
        # A map that shrank no longer begins with the ones before it.
        emitted = [before, x] if self.down else [x]
        x = torch.cat([x, resize(self.last(low[-1]), x.shape[-2:], "corners")], 1)
        return self.transition(x), emitted


def features(maps: Sequence[Tensor], chans: Sequence[int]) -> list[Tensor]:
    """The features of a block, as views of the maps that it emitted.

    Args:
        maps: One map [B, chans[-1], H, W]; of a block that halves them the last two.
        chans: Channels of each feature (`feature_chans` of the block).
    """
    return [*(maps[0][:, :width] for width in chans[:-1]), maps[-1]]


def _transition(chans: int, reduction: float | None) -> tuple[nn.Module, int]:
    if reduction is None:
        return nn.Identity(), chans
    narrow = int(reduction * chans)
    if narrow < 1:
        raise Mistake(f"reduction={reduction} leaves nothing of {chans} channels; it must be at least {1 / chans}")
    return Conv2dNormActivation(chans, narrow, 1), narrow
