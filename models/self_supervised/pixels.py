"""Pixels as features: what a backbone has to beat."""

from __future__ import annotations

from torch import Tensor, nn


class Pixels(nn.Module):
    """A backbone whose features of an image are its pixels, and which has nothing to learn.

    Args:
        size: Height and width of the images.
        in_chans: Channels of the images.
    """

    def __init__(self, size: int, in_chans: int = 3) -> None:
        super().__init__()
        self.num_features = in_chans * size * size

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, size, size] to features [B, in_chans * size * size]."""
        return images.flatten(1)
