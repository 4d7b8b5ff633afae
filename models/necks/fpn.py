"""Feature pyramid network, with the coarse levels that detectors add to it.

References: "Feature Pyramid Networks for Object Detection", arXiv 1612.03144; "Focal Loss for Dense Object Detection",
arXiv 1708.02002, section 4 (P6 and P7).
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

Extra = Literal["pool", "conv_on_backbone", "conv_on_pyramid"]


class FPN(nn.Module):
    """torchvision's pyramid on a backbone's maps, finest first.

    Args:
        in_chans: Channels of the maps.
        out_chans: Channels of every level.
        extra: Coarser levels. `pool`: one, every second pixel of the last; two of strided convolutions, the first
            `conv_on_backbone` or `conv_on_pyramid`, on the coarsest map of either.
        input_norm: Layer norm over the channels of each map first, as the published ConvNeXt detectors have.

    Attributes:
        num_levels: How many levels come out.
    """

    def __init__(self, in_chans: Sequence[int], out_chans: int, extra: Extra, input_norm: bool = False) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm2d(chans, eps=1e-6) if input_norm else nn.Identity() for chans in in_chans)
        convolutions: ExtraFPNBlock | None = None
        if extra != "pool":
            convolutions = LastLevelP6P7(in_chans[-1] if extra == "conv_on_backbone" else out_chans, out_chans)
            # torchvision tells by the widths, which may be equal.
            convolutions.use_P5 = extra == "conv_on_pyramid"
        self.fpn = FeaturePyramidNetwork(list(in_chans), out_chans, extra_blocks=convolutions)
        self.pools = extra == "pool"
        self.num_levels = len(in_chans) + (1 if self.pools else 2)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, in_chans[i], h_i, w_i] to levels [B, out_chans, ...], finest first, the extra ones last."""
        maps = self.normed(features)
        return self.levels(maps, self.laterals(maps))

    def normed(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps behind the norms, where there are any."""
        return [norm(feature) for norm, feature in zip(self.norms, features, strict=True)]

    def laterals(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What each map [B, in_chans[i], h_i, w_i] gives to its level [B, out_chans, h_i, w_i]."""
        return [conv(x) for conv, x in zip(self.fpn.inner_blocks, maps, strict=True)]

    def levels(self, maps: Sequence[Tensor], laterals: Sequence[Tensor]) -> list[Tensor]:
        """Adds laterals up from the coarsest to the finest, and makes the levels of the sums; then the extra ones."""
        sums = [laterals[-1]]
        for lateral in reversed(laterals[:-1]):
            sums.insert(0, lateral + F.interpolate(sums[0], size=lateral.shape[-2:], mode="nearest"))
        levels = [conv(x) for conv, x in zip(self.fpn.layer_blocks, sums, strict=True)]
        if self.fpn.extra_blocks is not None:
            levels, _ = self.fpn.extra_blocks(levels, list(maps), [])
        if self.pools:
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return levels
