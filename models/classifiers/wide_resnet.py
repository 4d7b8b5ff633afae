"""Wide ResNets for small images, as semi-supervised learning is compared on.

Reference: "Wide Residual Networks", arXiv 1605.07146; widths, slopes and norms are those of FixMatch's code.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from models.mistakes import Mistake

_SLOPE = 0.1


class WideResNet(nn.Module):
    """Three stages of pre-activation blocks, the second and third at half the resolution.

    Args:
        depth: Layers, 6 n + 4 for n blocks a stage.
        widen: Factor of the widths 16, 32 and 64.
        num_classes: Classes; 0 for pooled features.
        base_width: What stands for 16.
        dead_preact: Whether the first block of the second and third stage reads its input where it should read what its
            first norm and activation make of it. PyTorch ports of FixMatch do, whose first norms there are never used.
        in_chans: Channels of the images.
        norm_momentum: Share of a batch in the running statistics; the published one is for a million steps.

    Raises:
        Mistake: The depth is not 6 n + 4.
    """

    def __init__(
        self,
        depth: int = 28,
        widen: int = 2,
        num_classes: int = 10,
        base_width: int = 16,
        dead_preact: bool = False,
        in_chans: int = 3,
        norm_momentum: float = 0.001,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise Mistake(f"a wide ResNet has 6 n + 4 layers, such as 10, 16, 28 or 40, not {depth}")
        blocks = (depth - 4) // 6
        widths = [base_width, *(base_width * widen * factor for factor in (1, 2, 4))]
        self.num_classes = num_classes
        self.num_features = widths[-1]
        self.stem = nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        stages = []
        for i, (before, width) in enumerate(itertools.pairwise(widths)):
            # The ports of FixMatch activate the shortcut of the first block only where it changes the width.
            first = WideBlock(
                before,
                width,
                stride=2 if i else 1,
                active_shortcut=i == 0 and (before != width or not dead_preact),
                dead_preact=dead_preact and i > 0,
            )
            stages.append(nn.Sequential(first, *(WideBlock(width, width) for _ in range(blocks - 1))))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = norm_momentum
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
            elif isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        x = F.leaky_relu(self.norm(self.stages(self.stem(images))), _SLOPE)
        return self.head(x.mean((2, 3)))


class WideBlock(nn.Module):
    """Norm, activation and 3x3 convolution, twice, and a shortcut from the block's input.

    Args:
        in_chans: Channels of the input.
        out_chans: Channels of the output.
        stride: Of the first convolution and the shortcut.
        active_shortcut: Whether the shortcut begins behind the first activation.
        dead_preact: Whether the first convolution reads the block's input itself; the first norm only keeps statistics.
    """

    def __init__(
        self, in_chans: int, out_chans: int, stride: int = 1, active_shortcut: bool = False, dead_preact: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_chans)
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False) if in_chans != out_chans else None
        self.active_shortcut = active_shortcut
        self.dead_preact = dead_preact

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_chans, H / stride, W / stride]."""
        active = F.leaky_relu(self.norm1(x), _SLOPE)
        before = active if self.active_shortcut else x
        inner = self.conv1(x if self.dead_preact else active)
        inner = self.conv2(F.leaky_relu(self.norm2(inner), _SLOPE))
        return inner + (before if self.shortcut is None else self.shortcut(before))
