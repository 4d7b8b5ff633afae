"""ADP-C for pose estimation: heat maps at four exits, computed further only where they are neither empty nor settled.

The paper reports it on MPII and its repository does not contain it. Heads are those of segmentation at the first three
exits and the one of HRNet's pose network at the last; how sure a heat map is of a pixel is our choice.

Reference: "Anytime Dense Prediction with Confidence Adaptivity", ICLR 2022, arXiv 2104.00749.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.anytime import iterate
from models.layers.hrnet import COARSE_FUSION, HRNet, Stage, init_weights, plain_conv
from models.layers.hrnet_exits import NUM_EXITS, ExitHead, HRNetExits, head_dims
from models.layers.masked_conv import MaskedConv2d, convolve
from models.layers.regions import Region
from models.mistakes import Mistake


class ADPCPose(HRNetExits):
    """HRNet's pose network with early exits, redesigned heads and confidence adaptivity.

    Args:
        num_joints: How many joints a person has, J.
        stages: A name in `models.layers.hrnet.STAGES`, or its four rows.
        in_chans: Channels of the images.
        pooled_dim: Hidden channels of the redesigned heads; None for plain heads.
        low: A pixel whose largest heat of any joint is below this is background, and skipped.
        high: One whose largest heat is above this is settled, and skipped. With `low` and `high` both None, all
            pixels are computed, without masked convolutions.
        bn_momentum: Share of a batch in the running statistics.
        init_std: Standard deviation of fresh convolution weights; None for He initialisation, to train from scratch.

    Raises:
        Mistake: Options that do not make a network; the message says which do.
    """

    spare_parts: ClassVar[dict[str, str]] = COARSE_FUSION

    def __init__(
        self,
        num_joints: int = 16,
        stages: str | Sequence[Stage] = "w32",
        in_chans: int = 3,
        pooled_dim: int | None = 128,
        low: float | None = 0.02,
        high: float | None = None,
        bn_momentum: float = 0.1,
        init_std: float | None = 0.001,
    ) -> None:
        if low is not None and high is not None and not low < high:
            raise Mistake(f"low={low} must be less than high={high}: pixels in between are computed")
        if pooled_dim is not None and pooled_dim < 1:
            raise Mistake(f"pooled_dim={pooled_dim} must be positive, or None for plain heads")
        adaptive = low is not None or high is not None
        conv = MaskedConv2d if adaptive else plain_conv
        trunk = HRNet(stages, in_chans, "nearest", bn_momentum, conv, out_branches=1)
        chans = [sum(widths) for widths in trunk.stage_chans]
        dims = head_dims(chans, pooled_dim)
        heads: list[nn.Module] = [
            ExitHead(chans[exit], dims[exit][1], num_joints, dims[exit][0], bn_momentum, conv if exit else plain_conv)
            for exit in range(NUM_EXITS - 1)
        ]
        heads.append(conv(trunk.stage_chans[-1][0], num_joints, 1, bias=True))
        super().__init__(trunk, heads, adaptive)
        self.num_joints, self.in_chans, self.low, self.high = num_joints, in_chans, low, high
        init_weights(self, init_std)

    def get_classifier(self) -> nn.Module:
        """The layers that depend on the joints."""
        *earlier, last = self.exits
        return nn.ModuleList([*(exit.get_submodule("classifier") for exit in earlier), last])

    def unsure(self, exit: int, logits: Tensor) -> Tensor:
        """Where the largest heat of any joint is neither below `low` nor above `high` (see `HRNetExits`)."""
        heat = logits.float().amax(1)
        unsure = torch.ones_like(heat, dtype=torch.bool)
        if self.low is not None:
            unsure &= heat >= self.low
        if self.high is not None:
            unsure &= heat <= self.high
        return unsure

    def predict(self, exit: int, maps: list[Tensor], at: list[Region | None]) -> Tensor:
        """Heat maps of an exit, from the maps of its stage; the last one reads the finest branch only."""
        if exit < NUM_EXITS - 1:
            return super().predict(exit, maps, at)
        head = self.exits[exit]
        assert isinstance(head, nn.Conv2d)
        return convolve(head, maps[0], at[0])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, in_chans, H, W], sides multiples of 32, to the heat maps [B, J, H / 4, W / 4] of each exit."""
        return list(iterate(self, images))
