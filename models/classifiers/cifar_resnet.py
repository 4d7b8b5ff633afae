"""The ResNets of small images, whose blocks are free in their middle widths.

Reference: "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2; pruned by "Pruning Filters for
Efficient ConvNets", 1608.08710, at the widths of "Rethinking the Value of Network Pruning", 1810.05270.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.he_normal import he_normal
from models.mistakes import Mistake
from models.pruning.norm_channels import NormChannels

STAGES = (16, 32, 64)
# By depth and variant: the share of filters that goes in each stage, and the blocks, counted from 0, that keep theirs.
_PUBLISHED: dict[str, tuple[int, Sequence[float], Sequence[int]]] = {
    "resnet56_l1_a": (56, (0.1, 0.1, 0.1), (7, 9, 18, 26)),
    "resnet56_l1_b": (56, (0.6, 0.3, 0.1), (7, 8, 9, 16, 18, 26)),
    "resnet110_l1_a": (110, (0.5, 0.0, 0.0), (17,)),
    "resnet110_l1_b": (110, (0.5, 0.4, 0.3), (17, 18, 36)),
}


class CIFARResNet(nn.Module):
    """Three stages of two-layer blocks, the second and third at half the resolution and twice the width.

    Args:
        depth: Layers, 6 n + 2 for n blocks a stage.
        widths: Of the middle of each block; None for those of its stage, or a name of published ones, such as
            `resnet56_l1_a`.
        num_classes: Classes, K.
        detached_shortcuts: Whether no gradient flows through the shortcuts that change the width, as in the published
            code.
        in_chans: Channels of the images.
        stage_widths: Channels of the three stages.

    Raises:
        Mistake: The depth is not 6 n + 2, or the widths are those of another depth.
    """

    def __init__(
        self,
        depth: int = 20,
        widths: str | Sequence[int] | None = None,
        num_classes: int = 10,
        detached_shortcuts: bool = False,
        in_chans: int = 3,
        stage_widths: tuple[int, int, int] = STAGES,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise Mistake(f"a ResNet of small images has 6 n + 2 layers, such as 20, 32, 56 or 110, not {depth}")
        blocks = (depth - 2) // 6
        self.widths = _inner_widths(depth, widths, stage_widths)
        inner = iter(self.widths)
        self.num_classes = num_classes
        self.num_features = stage_widths[-1]
        self.stem = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(in_chans, stage_widths[0], 3, padding=1, bias=False),
                norm=nn.BatchNorm2d(stage_widths[0]),
                act=nn.ReLU(inplace=True),
            )
        )
        stages = []
        before = stage_widths[0]
        for i, width in enumerate(stage_widths):
            stage = []
            for block in range(blocks):
                stride = 2 if i and not block else 1
                stage.append(BasicBlock(before, next(inner), width, stride, detached_shortcuts))
                before = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(self.num_features, num_classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, K]."""
        return self.head(self.pool(self.stages(self.stem(images))).flatten(1))

    def norm_channels(self) -> list[NormChannels]:
        """The norm inside of each block, with the convolutions before and behind it."""
        blocks = [name for name, module in self.named_modules() if isinstance(module, BasicBlock)]
        return [NormChannels(f"{name}.norm1", f"{name}.conv2", f"{name}.conv1") for name in blocks]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norms, added to the block's input, which is pooled and filled up with zeros to fit.

    Args:
        in_chans: Channels of the input.
        width: Channels between the two convolutions.
        out_chans: Channels of the output.
        stride: Of the first convolution, and of the shortcut.
        detached_shortcut: Whether no gradient flows through the shortcut where it changes the width.
    """

    def __init__(
        self, in_chans: int, width: int, out_chans: int, stride: int = 1, detached_shortcut: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, out_chans, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_chans)
        self.act2 = nn.ReLU(inplace=True)
        self.stride = stride
        self.added_chans = out_chans - in_chans
        self.detached_shortcut = detached_shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_chans, H / stride, W / stride]."""
        inner = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(inner + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and not self.added_chans:
            return x
        if self.detached_shortcut:
            x = x.detach()
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        return F.pad(x, (0, 0, 0, 0, 0, self.added_chans))


def _inner_widths(depth: int, widths: str | Sequence[int] | None, stages: Sequence[int]) -> list[int]:
    blocks = (depth - 2) // 6
    full = [width for width in stages for _ in range(blocks)]
    if widths is None:
        return full
    if isinstance(widths, str):
        if widths not in _PUBLISHED:
            known = ", ".join(_PUBLISHED)
            raise Mistake(f"no ResNet has the widths '{widths}': name one of {known}, or list its widths")
        published, shares, kept = _PUBLISHED[widths]
        if depth != published:
            raise Mistake(f"{widths} has widths for a depth of {published}, not of {depth}")
        return [
            width if block in kept else int(width * (1 - shares[block // blocks])) for block, width in enumerate(full)
        ]
    if len(widths) != len(full) or min(widths) < 1:
        raise Mistake(f"a ResNet of depth {depth} has {len(full)} middle widths above 0, not {list(widths)}")
    return list(widths)
