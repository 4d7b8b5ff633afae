"""RANet: densely connected sub-networks at rising resolution, with exits after each.

The first sub-network works on the smallest map and answers easy images. Each following one starts from a finer map,
takes in every feature of the one before, and adds exits of its own.

Reference: "Resolution Adaptive Networks for Efficient Inference", CVPR 2020, arXiv 2003.07326.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from models.anytime import iterate
from models.classifiers.ranet_blocks import DenseBlock, FusionBlock, features
from models.mistakes import Mistake

# Maps of these heights and widths become one pixel in a head: two strided convolutions, then 2x2 pooling.
HEAD_MAPS = range(5, 13)


class RANet(nn.Module):
    """RANet with any number of sub-networks; lists go from the lowest resolution to the highest.

    Sub-network i has `num_blocks + i * block_step` blocks. The first of them, as many as the sub-network before has,
    fuse its features; an exit follows each of the others. An inference can stop at any exit (`start`, `advance`), and
    nothing of a later sub-network has run by then but its base feature.

    Args:
        num_classes: How many classes there are, K.
        stem: `cifar`, which keeps the resolution of the images, or `imagenet`, which divides it by four.
        in_chans: Channels of the images.
        num_channels: Channels of a base feature of factor 1.
        growth_rate: Channels that a layer of factor 1 adds.
        growth_factors: Width of each sub-network, as a multiple of `num_channels` and `growth_rate`.
        bottleneck_factors: Width inside the layers of each sub-network, as a multiple of its growth.
        scales: Scale of each sub-network: equal neighbours have the same resolution, other ones differ by two. A
            sub-network of scale s has s - 1 transitions.
        num_blocks: Blocks and exits of the first sub-network.
        block_step: Blocks that each further one has more, and its exits.
        step: Layers of a block.
        step_mode: `even`: all blocks have `step` layers; `lg`: block b = 1, 2, ... has `b * step`.
        reduction: Share of the channels that a transition leaves.
        compress: Share of the channels of a fusion that come from the sub-network before.
        head_width: Channels of the convolutions of a head; None for as many as come in, as published for ImageNet.

    Raises:
        Mistake: Sizes that do not make a network; the message says which do.
    """

    def __init__(
        self,
        num_classes: int = 10,
        stem: Literal["cifar", "imagenet"] = "cifar",
        in_chans: int = 3,
        num_channels: int = 16,
        growth_rate: int = 6,
        growth_factors: Sequence[int] = (4, 2, 1),
        bottleneck_factors: Sequence[int] = (4, 2, 1),
        scales: Sequence[int] = (1, 2, 3),
        num_blocks: int = 2,
        block_step: int = 2,
        step: int = 4,
        step_mode: Literal["even", "lg"] = "even",
        reduction: float = 0.5,
        compress: float = 0.25,
        head_width: int | None = 128,
    ) -> None:
        super().__init__()
        counts = [num_blocks + i * block_step for i in range(len(scales))]
        _check_choices(stem, step_mode, reduction, compress)
        _check_sizes(
            num_classes=num_classes,
            in_chans=in_chans,
            num_channels=num_channels,
            growth_rate=growth_rate,
            num_blocks=num_blocks,
            block_step=block_step,
            step=step,
            head_width=1 if head_width is None else head_width,
            growth_factors=growth_factors,
            bottleneck_factors=bottleneck_factors,
            scales=scales,
        )
        _check_cascade(scales, counts, growth_rate, growth_factors, bottleneck_factors, step, compress)
        self.num_classes, self.in_chans = num_classes, in_chans
        widths = [num_channels * factor for factor in growth_factors]
        self.base = _base(stem, in_chans, widths, scales)

        self.subnets = nn.ModuleList()
        self.heads = nn.ModuleList()
        # Blocks that run between an exit and the one before it.
        self.segments: list[tuple[int, slice]] = []
        before: list[DenseBlock | FusionBlock] = []
        for i, (scale, count) in enumerate(zip(scales, counts, strict=True)):
            growth, factor = growth_rate * growth_factors[i], bottleneck_factors[i]
            transitions = {(j + 1) * count // scale for j in range(scale - 1)}
            downs = _downs(scales, counts, i)
            chans = widths[i]
            blocks: list[DenseBlock | FusionBlock] = []
            for b in range(1, count + 1):
                narrowed = reduction if b in transitions else None
                if b <= len(before):
                    low_factor, low_chans = bottleneck_factors[i - 1], before[b - 1].feature_chans
                    blocks.append(
                        FusionBlock(chans, low_chans, growth, factor, low_factor, compress, b in downs, narrowed)
                    )
                else:
                    depth = step if step_mode == "even" else b * step
                    blocks.append(DenseBlock(chans, depth, growth, factor, narrowed))
                chans = blocks[-1].out_chans
                if b > len(before):
                    self.heads.append(_head(chans, head_width or chans, num_classes))
                    self.segments.append((i, slice(b - 1 if b > len(before) + 1 else 0, b)))
            self.subnets.append(nn.ModuleList(blocks))
            before = blocks
        self.num_exits = len(self.heads)
        for part in (self.subnets, self.heads):
            part.apply(_init_weights)

    def base_features(self, images: Tensor) -> list[Tensor]:
        """Images [B, in_chans, H, W] to the map that each sub-network starts from, lowest resolution first."""
        maps = [images]
        for layer in self.base:
            maps.append(layer(maps[-1]))
        return maps[:0:-1]

    def start(self, images: Tensor) -> dict[str, Any]:
        """What the first exit needs (see `models.anytime.MultiExit`).

        Args:
            images: [B, in_chans, H, W].

        Returns:
            `base`: base features of the sub-networks that have not begun; `x`: the current map, in a list;
            `low`: features of the sub-network before that are still to be read, a list for each block;
            `emitted`: those of the current one.

        Raises:
            Mistake: Images of a size that the heads do not reduce to one pixel.
        """
        base = self.base_features(images)
        height, width = base[0].shape[-2:]
        if height not in HEAD_MAPS or width not in HEAD_MAPS:
            raise Mistake(
                f"images of {images.shape[-2]}x{images.shape[-1]} pixels reach the exits as maps of {height}x{width}, "
                f"which must have {HEAD_MAPS[0]} to {HEAD_MAPS[-1]} pixels a side (published: 8 or 7): change the "
                "images' size, the stem or the number of different scales"
            )
        return {"base": base, "x": [], "low": [], "emitted": []}

    def advance(self, exit: int, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Logits of an exit, from the state at the exit before.

        The state is used up: maps leave its lists as soon as nothing will read them any more.

        Args:
            exit: Number of the exit, 0 .. num_exits - 1.
            state: What came from `start` or from the exit before; maybe of fewer images than then.

        Returns:
            Logits [b, K] and the state of the next exit.
        """
        subnet, part = self.segments[exit]
        base, low, emitted = state["base"], state["low"], state["emitted"]
        if part.start == 0:
            x = base.pop(0)
            low, emitted = emitted, []
        else:
            x = state["x"].pop()
        for block in list(self.subnets[subnet].children())[part]:
            if isinstance(block, FusionBlock):
                x, maps = block(x, features(low.pop(0), block.low_chans))
            else:
                x, maps = block(x)
            # Features of the last sub-network have no reader.
            if base:
                emitted.append(maps)
        ends = exit + 1 == self.num_exits or self.segments[exit + 1][0] != subnet
        return self.heads[exit](x), {"base": base, "x": [] if ends else [x], "low": low, "emitted": emitted}

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B, in_chans, H, W] to the logits [B, K] of every exit, cheapest first."""
        return list(iterate(self, images))


def _base(stem: str, in_chans: int, widths: Sequence[int], scales: Sequence[int]) -> nn.ModuleList:
    first: nn.Module = Conv2dNormActivation(in_chans, widths[-1], 3)
    if stem == "imagenet":
        conv = nn.Conv2d(in_chans, widths[-1], 7, 2, 3)
        names = OrderedDict(
            conv=conv, norm=nn.BatchNorm2d(widths[-1]), act=nn.ReLU(inplace=True), pool=nn.MaxPool2d(3, 2, 1)
        )
        first = nn.Sequential(names)
    layers = [first]
    for i in reversed(range(len(widths) - 1)):
        layers.append(Conv2dNormActivation(widths[i + 1], widths[i], 3, 1 if scales[i] == scales[i + 1] else 2))
    return nn.ModuleList(layers)


def _head(in_chans: int, width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=Conv2dNormActivation(in_chans, width, 3, 2),
            conv2=Conv2dNormActivation(width, width, 3, 2),
            pool=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            linear=nn.Linear(width, num_classes),
        )
    )


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _downs(scales: Sequence[int], counts: Sequence[int], subnet: int) -> list[int]:
    """Fusion blocks of a sub-network that halve the resolution, counted from 1; none has the number 0."""
    return [0, *counts[:subnet]][-(scales[subnet] - 1) :]


def _check_choices(stem: str, step_mode: str, reduction: float, compress: float) -> None:
    for name, value, choices in (("stem", stem, ("cifar", "imagenet")), ("step_mode", step_mode, ("even", "lg"))):
        if value not in choices:
            raise Mistake(f"{name}={value!r} is none of {', '.join(choices)}")
    if not 0 < reduction <= 1:
        raise Mistake(f"reduction={reduction} must be a share of the channels, above 0 and at most 1")
    if not 0 < compress < 1:
        raise Mistake(f"compress={compress} must be a share of the channels between 0 and 1, both excluded")


def _check_sizes(**sizes: int | Sequence[int]) -> None:
    for name, size in sizes.items():
        if any(value < 1 for value in (size if isinstance(size, Sequence) else [size])):
            raise Mistake(f"{name}={size} must be 1 or more")


def _check_cascade(
    scales: Sequence[int],
    counts: Sequence[int],
    growth_rate: int,
    growth_factors: Sequence[int],
    bottleneck_factors: Sequence[int],
    step: int,
    compress: float,
) -> None:
    lengths = {"scales": scales, "growth_factors": growth_factors, "bottleneck_factors": bottleneck_factors}
    if len({len(sizes) for sizes in lengths.values()}) > 1 or not scales:
        given = ", ".join(f"{name} {len(sizes)}" for name, sizes in lengths.items())
        raise Mistake(f"each sub-network needs one number in each list, but they have: {given}")
    if len(scales) > 1 and step < 2:
        raise Mistake(f"step={step}: blocks that fuse the sub-network before need at least 2 layers")
    for i in range(1, len(scales)):
        growth = growth_rate * growth_factors[i]
        if growth * compress < 1:
            raise Mistake(
                f"sub-network {i} adds {growth} channels a layer, of which compress={compress} leaves less than one to "
                f"the sub-network before: growth_rate * growth_factors[{i}] must be at least {1 / compress:g}"
            )
        halved = sum(down > 0 for down in _downs(scales, counts, i))
        finer = sum(low != high for low, high in pairwise(scales[: i + 1]))
        if halved != finer:
            raise Mistake(
                f"scales={list(scales)}: sub-network {i} begins {finer} times finer than the first and halves its "
                f"maps {halved} times, so its exits would see maps of another size; use scales that rise from 1 by "
                "steps of 0 or 1, with at least 2 in the second place, such as [1, 2, 3] or [1, 2, 3, 3]"
            )
