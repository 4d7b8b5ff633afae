"""A neck that obeys the contract of `models.necks` and nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.necks import Extra


class ToyNeck(nn.Module):
    """A 1x1 convolution of each map, times a number; no coarser levels, whatever is asked for."""

    def __init__(
        self, in_chans: Sequence[int], out_chans: int, extra: Extra, input_norm: bool, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(chans, out_chans, 1) for chans in in_chans)
        self.gain = gain
        self.num_levels = len(in_chans)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [self.gain * conv(feature) for conv, feature in zip(self.convs, features, strict=True)]
