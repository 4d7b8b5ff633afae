"""ResNets of two branches that are mixed at random while they are trained.

Reference: "Shake-Shake regularization", arXiv 1705.07485; the network with two heads is that of "Mean teachers are
better role models", arXiv 1703.01780, and its published code.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mistakes import Mistake

_STEM = 16


def shake(first: Tensor, second: Tensor) -> Tensor:
    """A mixture of two branches, other shares of each sample, forwards and backwards: a y1 + (1 - a) y2.

    Args:
        first, second: [B, C, H, W].
    """
    forwards, backwards = torch.rand(2, len(first), 1, 1, 1, dtype=first.dtype, device=first.device)
    mixed = backwards * first + (1 - backwards) * second
    # What is added has no gradient, which stays that of the line above.
    return mixed + ((forwards - backwards) * (first - second)).detach()


class ShakeShake(nn.Module):
    """Three stages of blocks of two branches, the second and third at half the resolution.

    Args:
        depth: Layers, 6 n + 2 for n blocks a stage.
        width: Channels of the first stage; each other one has twice as many.
        num_classes: Classes.
        two_heads: Whether there is a second head, whose logits are compared with a teacher's while the first ones are
            with labels; see `both_heads`.
        in_chans: Channels of the images.

    Raises:
        Mistake: The depth is not 6 n + 2.
    """

    spare_parts: ClassVar[dict[str, str]] = {"the second head": r"consistency_head\..*"}

    def __init__(
        self, depth: int = 26, width: int = 96, num_classes: int = 10, two_heads: bool = False, in_chans: int = 3
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise Mistake(f"a shake-shake ResNet has 6 n + 2 layers, such as 8, 14, 20 or 26, not {depth}")
        blocks = (depth - 2) // 6
        widths = [_STEM, width, 2 * width, 4 * width]
        self.num_classes, self.num_features = num_classes, widths[-1]
        self.stem = nn.Conv2d(in_chans, _STEM, 3, 1, 1, bias=False)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    ShakeBlock(widths[i], widths[i + 1], stride=2 if i else 1),
                    *(ShakeBlock(widths[i + 1], widths[i + 1]) for _ in range(blocks - 1)),
                )
                for i in range(3)
            )
        )
        self.head = nn.Linear(widths[-1], num_classes)
        self.consistency_head = nn.Linear(widths[-1], num_classes) if two_heads else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to features [B, 4 width]."""
        x: Tensor = self.stages(self.stem(images))
        return x.mean((2, 3))

    def both_heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, num_classes] of images by the first head and by the second.

        Raises:
            Mistake: There is no second.
        """
        if self.consistency_head is None:
            raise Mistake("the network has one head: give it two_heads: true")
        features = self.features(images)
        return self.head(features), self.consistency_head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, num_classes], of the first head."""
        logits: Tensor = self.head(self.features(images))
        return logits


class ShakeBlock(nn.Module):
    """Two branches of activation, 3x3 convolution and norm, twice, mixed and added to a shortcut.

    Args:
        in_chans: Channels of the input.
        out_chans: Channels of the output.
        stride: Of the branches and the shortcut.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_Branch(in_chans, out_chans, stride) for _ in range(2))
        self.shortcut: nn.Module | None = None
        if stride > 1:
            self.shortcut = ShiftedShortcut(in_chans, out_chans)
        elif in_chans != out_chans:
            self.shortcut = nn.Sequential(nn.Conv2d(in_chans, out_chans, 1, bias=False), nn.BatchNorm2d(out_chans))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_chans, H / stride, W / stride]."""
        first, second = (branch(x) for branch in self.branches)
        mixed = shake(first, second) if self.training else (first + second) / 2
        return mixed + (x if self.shortcut is None else self.shortcut(x))


class _Branch(nn.Module):
    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(F.relu(x))))
        mapped: Tensor = self.norm2(self.conv2(x))
        return mapped


class ShiftedShortcut(nn.Module):
    """Half the resolution by two samplings a pixel apart, each of which a 1x1 convolution maps to half of the channels.

    Args:
        in_chans: Channels of the input.
        out_chans: Channels of the output.
    """

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * in_chans, out_chans, 1, groups=2)
        self.norm = nn.BatchNorm2d(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_chans, H / 2, W / 2]."""
        sampled = torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]], 1)
        mapped: Tensor = self.norm(self.conv(F.relu(sampled)))
        return mapped
