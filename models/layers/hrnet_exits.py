"""HRNet with an exit after each of its four stages, and later stages that work where earlier exits were unsure.

Reference: "Anytime Dense Prediction with Confidence Adaptivity", ICLR 2022, arXiv 2104.00749.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from models.anytime import exit_costs
from models.compute import forget, has_values, recorded
from models.decisions import note
from models.layers.hrnet import ConvNorm, HRNet, NewConv, concatenate, plain_conv
from models.layers.masked_conv import REACH, MaskedConv2d, convolve, strongest_kernel
from models.layers.regions import Layout, Region, average_pool, layout_of, pyramid, upsample

NUM_EXITS = 4
# Halvings in the pooled head of each exit; the last exit is never pooled.
POOLS = (3, 2, 1, 0)


class ExitHead(nn.Module):
    """Prediction at a quarter of the image's resolution: pools, 1x1 convolutions, back up, and a classifier.

    With p pools: p times (pool, convolve), then p times (double, convolve) but for the last convolution, which is the
    classifier. Without any: one convolution and the classifier.

    Args:
        in_chans: Channels that come in.
        hidden_dim: Channels inside.
        num_classes: Maps that leave.
        num_pools: p.
        bn_momentum: Share of a batch in the running statistics.
        conv: Makes a convolution.
    """

    def __init__(
        self,
        in_chans: int,
        hidden_dim: int,
        num_classes: int,
        num_pools: int,
        bn_momentum: float,
        conv: NewConv = plain_conv,
    ) -> None:
        super().__init__()
        self.num_pools = num_pools
        self.convs = nn.ModuleList(
            ConvNorm(conv(hidden_dim if i else in_chans, hidden_dim, 1, bias=True), bn_momentum)
            for i in range(max(1, 2 * num_pools - 1))
        )
        self.classifier = conv(hidden_dim, num_classes, 1, bias=True)

    def forward(self, x: Tensor, at: Sequence[Region | None] = (None,) * 4) -> Tensor:
        """[B, in_chans, h, w] to [B, num_classes, h, w].

        Args:
            x: Maps in the layout of `at[0]` if it has one; h and w are divisible by 2 ** num_pools.
            at: Where maps are computed, at this resolution and at halves of it.
        """
        level = 0
        for i, conv in enumerate(self.convs):
            if i < self.num_pools:
                x = average_pool(x, at[level], at[level + 1])
                level += 1
            elif level:
                x, level = self._double(x, level, at)
            x = conv(x, at[level])
        if level:
            x, level = self._double(x, level, at)
        return convolve(self.classifier, x, at[0])

    @staticmethod
    def _double(x: Tensor, level: int, at: Sequence[Region | None]) -> tuple[Tensor, int]:
        return upsample(x, at[level], at[level - 1], 2, "bilinear"), level - 1


class HRNetExits(nn.Module, ABC):
    """HRNet with four exits whose predictions are merged, pixel by pixel.

    After exit i < 4, pixels of which it is sure keep its prediction, and the next stage and exit are computed at the
    others only: o_1 = e_1, o_{i+1} = (1 - m_i) o_i + m_i e_{i+1}. What e is made of, and when an exit is sure, is for
    the task to say. In inference, pixels that are skipped are not computed; with gradients, or in training, they are
    computed and masked, to the same effect.

    An inference can stop at any exit. `start` and `advance` are those of `models.anytime.MultiExit`, but that images do
    not leave; what the exits computed is noted in `models.decisions`.

    Args:
        trunk: HRNet, with masked convolutions where later stages are to work on regions.
        heads: The head of each exit, cheapest first.
        adaptive: Whether later stages are computed where earlier exits were unsure, or everywhere.
    """

    num_exits = NUM_EXITS
    # The coarsest stride.
    size_divisor = 32
    refuses_compile = (
        "what it computes has another shape for every image, and compiling its four resolutions takes many minutes"
    )
    # Starts are an ImageNet trunk, and a network that computes every pixel (see `models.official.absent_parts`).
    fresh_parts: ClassVar[dict[str, str]] = {
        "falloffs of masked convolutions": r".*\.falloff",
        "exits": r"exits\..*",
    }

    def __init__(self, trunk: HRNet, heads: Sequence[nn.Module], adaptive: bool) -> None:
        super().__init__()
        self.backbone = trunk
        self.exits = nn.ModuleList(heads)
        self.adaptive = adaptive
        # Set to false where whole maps are wanted in inference: for an export, or to compare with.
        self.skip = True
        # By image size.
        self._dense_macs: dict[tuple[int, ...], list[float]] = {}
        # The first exit of the last forward pass that had no pixel left to compute.
        self._empty_from = NUM_EXITS

    @abstractmethod
    def unsure(self, exit: int, logits: Tensor) -> Tensor:
        """Where the next stage is computed: the merged logits [B, K, h, w] of an exit to bool [B, h, w]."""

    def start(self, images: Tensor) -> dict[str, Any]:
        """Images [B, C, H, W], sides multiples of 32, to the state before the first exit."""
        if has_values(images):
            forget(self)
            self._empty_from = NUM_EXITS
        x = self.backbone.stem(images)
        return {"maps": [x], "layouts": None, "logits": None, "computed": []}

    def advance(self, exit: int, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The next exit; runs no more than it needs.

        Args:
            exit: 0 .. 3.
            state: What came from `start` or from the exit before.

        Returns:
            Merged logits [B, K, H / 4, W / 4], and the state of the next exit.
        """
        maps, logits, computed = state["maps"], state["logits"], state["computed"]
        at: list[Region | None] = [None] * NUM_EXITS
        if exit and self.adaptive:
            regions = self._regions(exit, logits, computed[-1])
            computed = self._note([*computed, regions[0].mask])
            if regions[0].layout is not None and not len(regions[0].kept):
                self._empty_from = min(self._empty_from, exit)
                return logits, state | {"computed": computed}
            maps = _place(maps, state["layouts"], regions)
            at = list(regions)
        if exit:
            maps = self.backbone.stage(exit, maps, at)
        predicted = self.predict(exit, maps, at)
        merged = predicted if at[0] is None else at[0].merge(predicted, logits)
        if self.adaptive and not exit:
            computed = self._note([torch.ones_like(merged[:, 0], dtype=torch.bool)])
        layouts = [layout_of(region) for region in at]
        return merged, {"maps": maps, "layouts": layouts, "logits": merged, "computed": computed}

    def predict(self, exit: int, maps: list[Tensor], at: list[Region | None]) -> Tensor:
        """Raw logits of an exit, from the maps of its stage; in tiles where these are."""
        return self.exits[exit](concatenate(maps, at), at)

    def dense_macs(self, image_size: Sequence[int]) -> list[float]:
        """Multiply-adds up to each exit where every pixel is computed, cheapest exit first.

        Args:
            image_size: Channels, height and width of an image.
        """
        size = tuple(image_size)
        if size not in self._dense_macs:
            # Without regions nothing is recorded, so that what the last forward pass recorded stays.
            adaptive, self.adaptive = self.adaptive, False
            self._dense_macs[size] = exit_costs(self, size)
            self.adaptive = adaptive
        return list(self._dense_macs[size])

    def published_macs(self, image_size: Sequence[int]) -> list[float]:
        """Multiply-adds up to each exit as the paper counts them, of the last forward pass.

        A masked convolution of dense cost d whose result has p of its pixels computed, on average over the batch,
        counts p d for them and (1 - p) p C h w 49 for the interpolation. The paper's unit is 2**30. An exit for which
        no pixel was left costs nothing, and exits that were not asked for count as if all of their pixels were kept.

        Args:
            image_size: Channels, height and width of the images that were run.

        Returns:
            One number for each exit, cheapest first.
        """
        layers = {name: (entry.expected.mean().item(), entry.dense) for name, entry in recorded(self).items()}
        modules = dict(self.named_modules())
        costs = self.dense_macs(image_size)
        for name, (kept, dense) in layers.items():
            conv = cast(MaskedConv2d, modules[name])
            share, pixels = kept / dense, dense / conv.weight.numel()
            filled = (1 - share) * share * conv.out_channels * (2 * REACH + 1) ** 2 * pixels
            for exit in range(_exit_of(name), NUM_EXITS):
                costs[exit] += int(kept) + int(filled) - dense
        for exit in range(self._empty_from, NUM_EXITS):
            costs[exit] = costs[self._empty_from - 1]
        return costs

    def _note(self, computed: list[Tensor]) -> list[Tensor]:
        """Says where each exit so far was computed, [B, h, w] each, and returns it."""
        note(self, "exit", torch.stack(computed, 1), "exit", [f"exit {i}" for i in range(len(computed))])
        return computed

    def _regions(self, exit: int, logits: Tensor, before: Tensor) -> list[Region]:
        if not has_values(logits):
            return pyramid(torch.ones_like(logits[:, 0], dtype=torch.bool), NUM_EXITS)
        with torch.no_grad():
            # Once skipped, always skipped: with other thresholds at later exits, too.
            mask = self.unsure(exit - 1, logits) & before
            tiles = self.skip and not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
            falloff = strongest_kernel(self) if tiles else None
            return pyramid(mask, NUM_EXITS, falloff)


def _place(maps: list[Tensor], layouts: list[Layout | None] | None, regions: list[Region]) -> list[Tensor]:
    """Maps in the layouts that their regions want, from those that the stage before had."""
    placed = []
    for level, (x, region) in enumerate(zip(maps, regions, strict=False)):
        if region.layout is None:
            placed.append(x)
            continue
        source = layouts[level] if layouts else None
        if source is None:
            source = Layout(len(x), (x.shape[2], x.shape[3]), None, x.device)
        placed.append(region.place(x, source))
    return placed


def _exit_of(name: str) -> int:
    """The exit, from 0, that a module of this name first runs for."""
    part, number, *_ = name.split(".")
    if part == "exits":
        return int(number)
    return int(number[-1]) - (1 if number.startswith("stage") else 0)


def head_dims(chans: Sequence[int], pooled_dim: int | None) -> list[tuple[int, int]]:
    """Pools and hidden channels of the head of each exit.

    Args:
        chans: Channels that come in at each exit.
        pooled_dim: Hidden channels of the redesigned heads; None for heads like the last one at every exit.
    """
    if pooled_dim is None:
        return [(0, width) for width in chans]
    return [(pools, pooled_dim if pools else width) for pools, width in zip(POOLS, chans, strict=True)]
