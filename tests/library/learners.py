"""Small learners, and digits that they see in views."""

from __future__ import annotations

import albumentations as A
import torch
from torch import Tensor, nn

from datamodules import Digits, MultiView, View
from models.self_supervised import BYOL, DINO, Learner, MoCo

FEATURES = 16


class SmallConv(nn.Module):
    """A convolution with a batch norm, for images of any size."""

    num_features = FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, FEATURES, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(FEATURES)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).relu().mean((2, 3))


def learner(name: str) -> Learner:
    """A learner with the same weights every time."""
    torch.manual_seed(0)
    if name == "moco":
        return MoCo(SmallConv(), out_dim=8, queue_size=1024)
    if name == "byol":
        return BYOL(SmallConv(), hidden_dim=16, out_dim=8)
    return DINO(SmallConv(), {"out_dim": 24, "hidden_dim": 16, "bottleneck_dim": 8})


def views(name: str, batch_size: int = 64) -> MultiView:
    """Digits in the views that it needs."""
    moved = [A.Affine(translate_percent=(-0.1, 0.1), p=1.0)]
    small = [A.RandomCrop(6, 6)]
    chosen = [View(moved, 2)] + ([View(small, 2)] if name == "dino" else [])
    return MultiView(Digits(batch_size=batch_size), chosen)
