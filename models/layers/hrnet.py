"""HRNet: branches at four resolutions side by side, each stage fused at every resolution.

timm has HRNet with nearest resizing between branches and one way through it. This one resizes as the segmentation
network does, stops between stages and runs on regions of its maps. Its names and shapes are those of the published
checkpoints, and of timm's.

Reference: "Deep High-Resolution Representation Learning for Visual Recognition", arXiv 1908.07919.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.masked_conv import convolve
from models.layers.pointwise_conv import PointwiseConv2d
from models.layers.regions import Region, upsample
from models.mistakes import Mistake

# Modules, blocks of each branch, channels of each branch.
Stage = tuple[int, Sequence[int], Sequence[int]]
STEM_CHANS = 64
# The first stage has bottlenecks, of four times as many channels outside as inside, and no fusion.
STAGES: dict[str, tuple[Stage, ...]] = {
    "w18_small_v2": (
        (1, [2], [64]),
        (1, [2] * 2, [18, 36]),
        (3, [2] * 3, [18, 36, 72]),
        (2, [2] * 4, [18, 36, 72, 144]),
    ),
    "w32": ((1, [4], [64]), (1, [4] * 2, [32, 64]), (4, [4] * 3, [32, 64, 128]), (3, [4] * 4, [32, 64, 128, 256])),
    "w48": ((1, [4], [64]), (1, [4] * 2, [48, 96]), (4, [4] * 3, [48, 96, 192]), (3, [4] * 4, [48, 96, 192, 384])),
}

# What an ImageNet trunk has beyond one that only its finest branch leaves (see `models.official.spare_parts`).
COARSE_FUSION = {"fusion into coarser branches": r"backbone\.stage4\.\d+\.fuse_layers\.[1-3]\..*"}

NewConv = Callable[..., nn.Conv2d]


def plain_conv(in_chans: int, out_chans: int, kernel_size: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size of the map, divided by the stride."""
    if kernel_size == 1:
        assert stride == 1
        return PointwiseConv2d(in_chans, out_chans, bias)
    return nn.Conv2d(in_chans, out_chans, kernel_size, stride, kernel_size // 2, bias=bias)


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and maybe ReLU.

    Args:
        conv: The convolution.
        bn_momentum: Share of a batch in the running statistics.
        act: Whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, bn_momentum: float, act: bool = True) -> None:
        super().__init__(conv, nn.BatchNorm2d(conv.out_channels, momentum=bn_momentum))
        self.act = act

    def forward(self, x: Tensor, at: Region | None = None) -> Tensor:
        """Maps to maps; `at` is where the result is computed."""
        x = self[1](convolve(cast(nn.Conv2d, self[0]), x, at))
        return F.relu(x, inplace=True) if self.act else x


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut: [B, in_chans, H, W] to [B, 4 * chans, H, W]."""

    def __init__(self, in_chans: int, chans: int, bn_momentum: float) -> None:
        super().__init__()
        out_chans = 4 * chans
        self.conv1, self.bn1 = plain_conv(in_chans, chans, 1), nn.BatchNorm2d(chans, momentum=bn_momentum)
        self.conv2, self.bn2 = plain_conv(chans, chans, 3), nn.BatchNorm2d(chans, momentum=bn_momentum)
        self.conv3, self.bn3 = plain_conv(chans, out_chans, 1), nn.BatchNorm2d(out_chans, momentum=bn_momentum)
        self.downsample: nn.Module = nn.Identity()
        if in_chans != out_chans:
            self.downsample = ConvNorm(plain_conv(in_chans, out_chans, 1), bn_momentum, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps to maps."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)).add_(self.downsample(x)), inplace=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, chans, H, W] to the same shape."""

    def __init__(self, chans: int, conv: NewConv, bn_momentum: float) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(chans, chans, 3), nn.BatchNorm2d(chans, momentum=bn_momentum)
        self.conv2, self.bn2 = conv(chans, chans, 3), nn.BatchNorm2d(chans, momentum=bn_momentum)

    def forward(self, x: Tensor, at: Region | None = None) -> Tensor:
        """Maps to maps; `at` is where the result is computed."""
        y = F.relu(self.bn1(convolve(self.conv1, x, at)), inplace=True)
        return F.relu(self.bn2(convolve(self.conv2, y, at)).add_(x), inplace=True)


class HighResolutionModule(nn.Module):
    """Blocks on every branch, then each branch the sum of all of them (arXiv 1908.07919, figure 3).

    Args:
        blocks: Blocks of each branch.
        chans: Channels of each branch, at resolutions each half of the one before.
        resize: How coarse branches are resized to finer ones.
        bn_momentum: Share of a batch in the running statistics.
        conv: Makes a convolution.
        out_branches: Branches that leave, finest first; None for all.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        chans: Sequence[int],
        resize: Literal["bilinear", "nearest"],
        bn_momentum: float,
        conv: NewConv = plain_conv,
        out_branches: int | None = None,
    ) -> None:
        super().__init__()
        self.resize = resize
        self.branches = nn.ModuleList(
            nn.ModuleList(BasicBlock(width, conv, bn_momentum) for _ in range(depth))
            for depth, width in zip(blocks, chans, strict=True)
        )
        layer = partial(ConvNorm, bn_momentum=bn_momentum)

        def path(source: int, target: int) -> nn.Module:
            if source == target:
                return nn.Identity()
            if source > target:
                return layer(conv(chans[source], chans[target], 1), act=False)
            steps = [layer(conv(chans[source], chans[source], 3, 2)) for _ in range(target - source - 1)]
            return nn.ModuleList([*steps, layer(conv(chans[source], chans[target], 3, 2), act=False)])

        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(path(source, target) for source in range(len(chans)))
            for target in range(len(chans) if out_branches is None else out_branches)
        )

    def forward(self, maps: Sequence[Tensor], at: Sequence[Region | None]) -> list[Tensor]:
        """Maps of the branches, finest first, to as many or fewer; `at` is where each is computed."""
        maps = list(maps)
        for i, blocks in enumerate(self.branches):
            for block in cast(nn.ModuleList, blocks):
                maps[i] = block(maps[i], at[i])
        return [
            F.relu(self._sum(maps, target, cast(nn.ModuleList, paths), at), inplace=True)
            for target, paths in enumerate(self.fuse_layers)
        ]

    def _sum(self, maps: list[Tensor], target: int, paths: nn.ModuleList, at: Sequence[Region | None]) -> Tensor:
        total: Tensor | None = None
        for source, path in enumerate(paths):
            x = maps[source]
            if source < target:
                for step, layer in enumerate(cast(nn.ModuleList, path), source + 1):
                    x = layer(x, at[step])
            elif source > target:
                x = upsample(path(x, at[source]), at[source], at[target], 2 ** (source - target), self.resize)
            total = x if total is None else total + x
        assert total is not None
        return total


class HRNet(nn.Module):
    """Trunk of a dense prediction network, at a quarter of the image's resolution and coarser.

    Args:
        stages: A name in `STAGES`, or its four rows: modules, blocks of each branch, channels of each branch.
        in_chans: Channels of the images.
        resize: How coarse branches are resized to finer ones: `bilinear` in segmentation, `nearest` in pose estimation.
        bn_momentum: Share of a batch in the running statistics: 0.01 published for segmentation, 0.1 for pose.
        conv: Makes the convolutions after the first stage.
        out_branches: Branches that the last stage returns, finest first; None for all.

    Raises:
        Mistake: No such name, or rows that make no network.
    """

    def __init__(
        self,
        stages: str | Sequence[Stage] = "w18_small_v2",
        in_chans: int = 3,
        resize: Literal["bilinear", "nearest"] = "bilinear",
        bn_momentum: float = 0.01,
        conv: NewConv = plain_conv,
        out_branches: int | None = None,
    ) -> None:
        super().__init__()
        if resize not in ("bilinear", "nearest"):
            raise Mistake(f"resize={resize!r} is not one of bilinear, nearest")
        rows = stage_rows(stages)
        norm = partial(nn.BatchNorm2d, momentum=bn_momentum)
        self.conv1, self.bn1 = plain_conv(in_chans, STEM_CHANS, 3, 2), norm(STEM_CHANS)
        self.conv2, self.bn2 = plain_conv(STEM_CHANS, STEM_CHANS, 3, 2), norm(STEM_CHANS)

        chans = STEM_CHANS
        self.layer1 = nn.Sequential()
        for _ in range(rows[0][1][0]):
            self.layer1.append(Bottleneck(chans, rows[0][2][0], bn_momentum))
            chans = 4 * rows[0][2][0]

        before: list[int] = [chans]
        for number, (modules, blocks, widths) in enumerate(rows[1:], 1):
            transition = nn.ModuleList(
                _transition(before, branch, width, conv, bn_momentum) for branch, width in enumerate(widths)
            )
            last = number == len(rows) - 1
            stage = nn.ModuleList(
                HighResolutionModule(
                    blocks, widths, resize, bn_momentum, conv, out_branches if last and m == modules - 1 else None
                )
                for m in range(modules)
            )
            # The published names.
            self.add_module(f"transition{number}", transition)
            self.add_module(f"stage{number + 1}", stage)
            before = list(widths)
        # Channels that leave each stage, of each branch.
        self.stage_chans = [[chans], *(list(widths) for _, _, widths in rows[1:])]

    def stem(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to what the first stage makes of them, [B, C, H / 4, W / 4].

        Raises:
            Mistake: Images whose sides are not multiples of 32.
        """
        height, width = images.shape[-2:]
        if height % 32 or width % 32:
            raise Mistake(f"images of {height}x{width} pixels: height and width must be multiples of 32")
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return self.layer1(x)

    def stage(self, number: int, maps: Sequence[Tensor], at: Sequence[Region | None] = (None,) * 4) -> list[Tensor]:
        """One of the stages after the first.

        Args:
            number: 1, 2 or 3.
            maps: Maps of the branches of the stage before, finest first; in the layouts of `at` where they have one.
            at: Where the maps of each branch are computed.

        Returns:
            Maps of the stage's branches, finest first.
        """
        transition = cast(nn.ModuleList, self.get_submodule(f"transition{number}"))
        inputs = []
        for branch, layer in enumerate(transition):
            x = maps[min(branch, len(maps) - 1)]
            inputs.append(x if isinstance(layer, nn.Identity) else layer(x, at[branch]))
        for module in cast(nn.ModuleList, self.get_submodule(f"stage{number + 1}")):
            inputs = module(inputs, at)
        return inputs

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, in_chans, H, W] to the maps of the last stage's branches, finest first."""
        maps = [self.stem(images)]
        for number in (1, 2, 3):
            maps = self.stage(number, maps)
        return maps


class _NewBranch(nn.Sequential):
    # A level more of names, as in published checkpoints.
    def forward(self, x: Tensor, at: Region | None = None) -> Tensor:
        return self[0](x, at)


def _transition(before: list[int], branch: int, width: int, conv: NewConv, bn_momentum: float) -> nn.Module:
    if branch >= len(before):
        return _NewBranch(ConvNorm(conv(before[-1], width, 3, 2), bn_momentum))
    return nn.Identity() if before[branch] == width else ConvNorm(conv(before[branch], width, 3), bn_momentum)


def stage_rows(stages: str | Sequence[Stage]) -> Sequence[Stage]:
    """The rows of a name in `STAGES`, or rows that are checked.

    Raises:
        Mistake: No such name, or rows that make no network.
    """
    if isinstance(stages, str):
        if stages not in STAGES:
            raise Mistake(f"no HRNet is called {stages!r}; there are: {', '.join(STAGES)}, or give the rows")
        return STAGES[stages]
    wrong = len(stages) != 4 or any(
        modules < 1 or not len(blocks) == len(chans) == number or min(*blocks, *chans) < 1
        for number, (modules, blocks, chans) in enumerate(stages, 1)
    )
    if wrong or stages[0][0] != 1:
        raise Mistake(
            f"stages={stages} must be four rows (modules, blocks of each branch, channels of each branch) of positive "
            "numbers, with 1, 2, 3 and 4 branches and one module in the first"
        )
    return stages


def concatenate(maps: Sequence[Tensor], at: Sequence[Region | None] = (None,) * 4) -> Tensor:
    """All branches at the resolution of the finest, [B, sum of channels, h, w]; bilinear."""
    resized = [upsample(x, at[i], at[0], 2**i, "bilinear") if i else x for i, x in enumerate(maps)]
    return torch.cat(resized, 1)


def init_weights(network: nn.Module, std: float | None) -> None:
    """Draws the convolutions' weights, in place; norms start as the identity.

    Args:
        network: Network.
        std: Standard deviation, 0.001 as published for networks that load ImageNet weights; None for one by fan-out
            (He), to train from scratch.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            if std is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, std=std)
