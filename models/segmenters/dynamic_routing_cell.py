"""The cell of Dynamic Routing: what it computes, and what it leaves out for an image whose gates are closed.

Reference: "Learning Dynamic Routing for Semantic Segmentation", arXiv 2003.10401, section 3.1 and 3.2.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from models.layers.soft_gate import SoftGate, all_closed


class SeparableConv(nn.Sequential):
    """Depthwise 3x3 convolution, 1x1 convolution, batch norm."""

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["depthwise"] = nn.Conv2d(in_chans, in_chans, 3, stride, 1, groups=in_chans, bias=False)
        layers["pointwise"] = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        layers["norm"] = nn.BatchNorm2d(out_chans)
        super().__init__(layers)


class ScheduledDropPath(nn.Module):
    """Stochastic depth that grows with the training: drops an image's branch with probability `progress * rate`.

    Args:
        rate: Probability at the end of the training.
    """

    progress: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        # `callbacks.Annealing` moves it from 0 to 1 by the step alone, so that it need not be in a checkpoint.
        self.register_buffer("progress", torch.tensor(1.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same, scaled up where it is kept."""
        if not self.training:
            return x
        keep = (1 - self.rate * self.progress).expand(x.shape[0])
        return x * (torch.bernoulli(keep) / keep).to(x.dtype).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Sent:
    """What a cell passes on by one transform, of some images of a batch.

    Args:
        transform: How it changes the scale.
        maps: [number of images, C, H, W]; None for no image.
        images: Which ones, in ascending order.
        reached: Images that count as having an input where it leads. Where `maps` has none of them, that is zero.
    """

    transform: str
    maps: Tensor | None
    images: list[int]
    reached: list[int]


class Cell(nn.Module):
    """`h = ReLU(SepConv(x) + x)`, passed on at up to three scales, each as far as its gate is open.

    The gates are in the order of `transforms`. Where all of an image's are closed, x itself is kept.

    Args:
        chans: Channels in. `up` halves them as it doubles height and width, `down` the other way round.
        transforms: What leaves the cell, in the order `keep`, `up`, `down`.
        gated: Whether there are gates; without them everything passes as it is.
        small_gate: See `SoftGate`.
        drop_path: See `ScheduledDropPath`.
    """

    def __init__(
        self,
        chans: int,
        transforms: Sequence[str],
        gated: bool = True,
        small_gate: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.transforms = tuple(transforms)
        self.body = nn.Sequential(SeparableConv(chans, chans), nn.ReLU(), SeparableConv(chans, chans))
        self.drop_path = ScheduledDropPath(drop_path) if drop_path > 0 else nn.Identity()
        if "up" in transforms:
            self.up = Conv2dNormActivation(chans, chans // 2, 1)
        if "down" in transforms:
            self.down = Conv2dNormActivation(chans, 2 * chans, 1, stride=2)
        self.gate = SoftGate(chans, len(self.transforms), small_gate) if gated else None

    def forward(self, x: Tensor, reached: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Computes everything for every image; what is closed is multiplied by zero.

        Args:
            x: Input [B, C, H, W].
            reached: Images that have an input [B]; the gates of others count as closed. None for all.

        Returns:
            Outputs by transform, and the gates [B, transforms]; ones where the cell has none.
        """
        if self.gate is None:
            hidden = self._hidden(x)
            gates = torch.ones(x.shape[0], len(self.transforms), device=x.device)
            return {transform: self._transformed(transform, hidden) for transform in self.transforms}, gates
        gates = self.gate(x)
        if reached is not None:
            gates = gates * reached[:, None]
        hidden = self._hidden(x)
        outputs = {
            transform: self._transformed(transform, hidden, gate)
            for transform, gate in zip(self.transforms, gates.unbind(1), strict=True)
        }
        outputs["keep"] = outputs["keep"] + _weighted(x, all_closed(gates))
        return outputs, gates

    def sparse(self, x: Tensor, images: list[int]) -> tuple[list[Sent], Tensor]:
        """The same as `forward`, computing only what is open. For inference, in a cell with gates.

        Args:
            x: Input [B, C, H, W].
            images: Those that have an input, in ascending order; at least one.

        Returns:
            What it sends, and the gates [B, transforms].
        """
        assert self.gate is not None
        own = pick(x, images)
        gates = self.gate(own)
        # The one wait for the device: which images go where.
        decisions = ((gates > 0) & ~all_closed(gates)[:, None]).tolist()
        sent: list[Sent] = []
        if closed := [row for row, paths in enumerate(decisions) if not any(paths)]:
            kept = [images[row] for row in closed]
            sent.append(Sent("keep", pick(own, closed), kept, kept))
        if opened := [row for row, paths in enumerate(decisions) if any(paths)]:
            awake = [images[row] for row in opened]
            hidden, weights = self._hidden(pick(own, opened)), pick(gates, opened)
            for column, transform in enumerate(self.transforms):
                rows = [i for i, row in enumerate(opened) if decisions[row][column]]
                maps = None
                if rows:
                    maps = self._transformed(transform, pick(hidden, rows), pick(weights, rows)[:, column])
                sent.append(Sent(transform, maps, [awake[i] for i in rows], awake))
        everyone = gates.new_zeros(len(x), gates.shape[1])
        return sent, gates if len(images) == len(x) else everyone.index_copy(0, index(images, x), gates)

    def _hidden(self, x: Tensor) -> Tensor:
        return F.relu(self.drop_path(self.body(x)) + x)

    def _transformed(self, transform: str, hidden: Tensor, gate: Tensor | None = None) -> Tensor:
        maps = hidden if transform == "keep" else self.get_submodule(transform)(hidden)
        if gate is not None:
            maps = _weighted(maps, gate)
        # After the gate, which costs less at the smaller size and comes to the same: both are linear.
        return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False) if transform == "up" else maps


def pick(x: Tensor, rows: list[int]) -> Tensor:
    """Rows of x in ascending order; x itself if those are all."""
    return x if len(rows) == len(x) else x.index_select(0, index(rows, x))


def index(rows: list[int], x: Tensor) -> Tensor:
    """An index of rows, where x is."""
    return torch.tensor(rows, device=x.device)


def _weighted(maps: Tensor, weight: Tensor) -> Tensor:
    return maps * weight.to(maps.dtype).view(-1, 1, 1, 1)
