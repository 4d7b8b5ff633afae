"""Pre-activation ResNets of small images, whose norms choose the channels that a block reads of the shared map.

Reference: "Identity Mappings in Deep Residual Networks", arXiv 1603.05027; slimmed by "Learning Efficient Convolutional
Networks through Network Slimming", 1708.06519, at the sizes of "Rethinking the Value of Network Pruning", 1810.05270.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.layers.channel_selection import ChannelSelection
from models.layers.he_normal import he_normal
from models.mistakes import Mistake
from models.pruning.norm_channels import NormChannels

_EXPANSION = 4
_STAGES = (16, 32, 64)


class PreActResNet(nn.Module):
    """Three stages of bottlenecks, the second and third at half the resolution and twice the width.

    Args:
        depth: Layers, 9 n + 2 for n blocks a stage.
        widths: Of each block what its three convolutions read, and last what the classifier reads; None for all there
            is. What the first convolution of a block and the classifier read is chosen of a map that they share.
        num_classes: Classes, K.
        selection: Whether channels of shared maps can be chosen.
        gamma: Where the scales of norms start: 0.5 where they are slimmed.
        in_chans: Channels of the images.

    Raises:
        Mistake: The depth is not 9 n + 2, or the widths are those of another depth.
    """

    def __init__(
        self,
        depth: int = 164,
        widths: Sequence[int] | None = None,
        num_classes: int = 10,
        selection: bool = True,
        gamma: float = 1.0,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9:
            raise Mistake(f"a ResNet of bottlenecks has 9 n + 2 layers, such as 20, 56, 110 or 164, not {depth}")
        blocks = (depth - 2) // 9
        shared = _shared_widths(blocks)
        full = [
            width for block, before in enumerate(shared[:-1]) for width in (before, *[_STAGES[block // blocks]] * 2)
        ] + [shared[-1]]
        widths = list(full if widths is None else widths)
        if len(widths) != len(full) or min(widths) < 1:
            raise Mistake(f"a ResNet of depth {depth} has {len(full)} widths above 0, not {widths}")
        if not selection and any(kept < width for kept, width in zip(widths[::3], full[::3], strict=True)):
            raise Mistake("without a selection blocks and classifier read shared maps whole")
        self.num_classes = num_classes
        self.widths = widths
        self.num_features = shared[-1]
        self.stem = nn.Conv2d(in_chans, shared[0], 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        for stage in range(len(_STAGES)):
            layers = nn.Sequential()
            for block in range(stage * blocks, (stage + 1) * blocks):
                stride = 2 if stage and block == stage * blocks else 1
                inner = widths[3 * block : 3 * block + 3]
                layers.append(PreActBottleneck(shared[block], inner, shared[block + 1], stride, selection))
            self.stages.append(layers)
        self.norm = nn.BatchNorm2d(shared[-1])
        self.select = ChannelSelection(shared[-1], widths[-1]) if selection else nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], num_classes)
        he_normal(self, gamma)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, K]."""
        x = self.act(self.select(self.norm(self.stages(self.stem(images)))))
        return self.head(self.pool(x).flatten(1))

    def norm_channels(self) -> list[NormChannels]:
        """Every norm, with the convolution behind it, and the one before it or the selection of a shared map."""
        blocks = [name for name, module in self.named_modules() if isinstance(module, PreActBottleneck)]
        found = []
        for name in blocks:
            writers = (f"{name}.select", f"{name}.conv1", f"{name}.conv2")
            found += [NormChannels(f"{name}.norm{i}", f"{name}.conv{i}", writers[i - 1]) for i in (1, 2, 3)]
        return [*found, NormChannels("norm", "head", "select")]


class PreActBottleneck(nn.Module):
    """Norm, ReLU and convolution, three times (1x1, 3x3, 1x1), added to the block's input.

    Args:
        in_chans: Channels of the input.
        widths: What the three convolutions read.
        out_chans: Channels of the output.
        stride: Of the 3x3 convolution and the shortcut.
        selection: Whether the first convolution's channels can be chosen.
    """

    def __init__(
        self, in_chans: int, widths: Sequence[int], out_chans: int, stride: int = 1, selection: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_chans)
        self.select = ChannelSelection(in_chans, widths[0]) if selection else nn.Identity()
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(widths[0], widths[1], 1, bias=False)
        self.norm2 = nn.BatchNorm2d(widths[1])
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(widths[1], widths[2], 3, stride, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(widths[2])
        self.act3 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(widths[2], out_chans, 1, bias=False)
        changes = stride > 1 or in_chans != out_chans
        self.shortcut = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, out_chans, H / stride, W / stride]."""
        inner = self.conv1(self.act1(self.select(self.norm1(x))))
        inner = self.conv2(self.act2(self.norm2(inner)))
        inner = self.conv3(self.act3(self.norm3(inner)))
        return inner + self.shortcut(x)


def _shared_widths(blocks: int) -> list[int]:
    """Channels that each block reads, and at last those that the classifier does."""
    return [_STAGES[0], *(_EXPANSION * width for width in _STAGES for _ in range(blocks))]
