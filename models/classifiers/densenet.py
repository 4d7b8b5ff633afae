"""DenseNets of small images, whose norms choose the channels that a layer reads of all that came before.

Reference: "Densely Connected Convolutional Networks", arXiv 1608.06993; slimmed by "Learning Efficient Convolutional
Networks through Network Slimming", 1708.06519, at the sizes of "Rethinking the Value of Network Pruning", 1810.05270,
which calls one without bottlenecks and compression "DenseNet-BC-100".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.channel_selection import ChannelSelection
from models.layers.he_normal import he_normal
from models.mistakes import Mistake
from models.pruning.norm_channels import NormChannels


class CIFARDenseNet(nn.Module):
    """Three stages of layers that each add channels, and transitions to half the resolution between them.

    Args:
        depth: Layers, 3 n + 4 for n a stage.
        growth_rate: Channels that a layer adds; there are twice as many behind the stem.
        widths: Channels that each layer, transition and the classifier read, in their order; None for all there are.
        num_classes: Classes, K.
        selection: Whether these channels can be chosen.
        compression: What a transition divides the number of channels by.
        gamma: Where the scales of norms start: 0.5 where they are slimmed.
        in_chans: Channels of the images.

    Raises:
        Mistake: The depth is not 3 n + 4, or the widths are those of another depth.
    """

    def __init__(
        self,
        depth: int = 40,
        growth_rate: int = 12,
        widths: Sequence[int] | None = None,
        num_classes: int = 10,
        selection: bool = True,
        compression: int = 1,
        gamma: float = 1.0,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if depth < 7 or (depth - 4) % 3:
            raise Mistake(f"a DenseNet of small images has 3 n + 4 layers, such as 40 or 100, not {depth}")
        layers = (depth - 4) // 3
        full, outputs = _channels(layers, growth_rate, compression)
        widths = list(full if widths is None else widths)
        if len(widths) != len(full) or any(not 0 < kept <= width for kept, width in zip(widths, full, strict=True)):
            raise Mistake(f"a DenseNet of depth {depth} has {len(full)} widths up to {full}, not {widths}")
        if not selection and widths != full:
            raise Mistake("without a selection layers read all the channels before them")
        units = [
            DenseUnit(*channels, kernel_size=1 if (i + 1) % (layers + 1) == 0 else 3, selection=selection)
            for i, channels in enumerate(zip(full, widths, outputs, strict=False))
        ]
        self.num_classes = num_classes
        self.widths = widths
        self.num_features = full[-1]
        self.stem = nn.Conv2d(in_chans, 2 * growth_rate, 3, padding=1, bias=False)
        starts = range(0, len(full), layers + 1)
        self.stages = nn.ModuleList(nn.ModuleList(units[start : start + layers]) for start in starts)
        self.transitions = nn.ModuleList(units[start + layers] for start in starts[:-1])
        self.norm = nn.BatchNorm2d(full[-1])
        self.select = ChannelSelection(full[-1], widths[-1]) if selection else nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], num_classes)
        he_normal(self, gamma)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, K]."""
        x = self.stem(images)
        for i, stage in enumerate(self.stages):
            if i:
                x = F.avg_pool2d(self.transitions[i - 1](x), 2)
            for layer in stage.children():
                x = torch.cat([x, layer(x)], 1)
        return self.head(self.pool(self.act(self.select(self.norm(x)))).flatten(1))

    def norm_channels(self) -> list[NormChannels]:
        """Every norm, in the order of the forward pass, with the convolution behind it and the selection in between."""
        units = []
        for i, stage in enumerate(self.stages):
            units += [f"stages.{i}.{layer}" for layer, _ in stage.named_children()]
            units += [f"transitions.{i}"] if i < len(self.transitions) else []
        found = [NormChannels(f"{name}.norm", f"{name}.conv", f"{name}.select") for name in units]
        return [*found, NormChannels("norm", "head", "select")]


class DenseUnit(nn.Module):
    """A norm, the choice of channels, a ReLU and a convolution.

    Args:
        in_chans: Channels of the input.
        kept: How many of them are read.
        out_chans: Channels of the output.
        kernel_size: Of the convolution.
        selection: Whether they can be chosen.
    """

    def __init__(self, in_chans: int, kept: int, out_chans: int, kernel_size: int = 3, selection: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_chans)
        self.select = ChannelSelection(in_chans, kept) if selection else nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(kept, out_chans, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_chans, H, W]."""
        return self.conv(self.act(self.select(self.norm(x))))


def _channels(layers: int, growth_rate: int, compression: int) -> tuple[list[int], list[int]]:
    """Channels before each layer, transition and the classifier, and those that each layer and transition gives."""
    before, after = [], []
    width = 2 * growth_rate
    for stage in range(3):
        before += [width + growth_rate * layer for layer in range(layers + 1)]
        width = (width + growth_rate * layers) // (1 if stage == 2 else compression)
        after += [growth_rate] * layers + ([] if stage == 2 else [width])
    return before, after
