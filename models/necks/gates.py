"""Gates of a pyramid: small networks that score, for each image, what each of its levels may do.

Reference: "Dynamic Feature Pyramid Networks for Object Detection", arXiv 2012.00779, and the compiled modules beside
Mingjian-Zhu/DyFPN at a74463b, which hold the gates that are not published as source.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.mistakes import Mistake

GateName = Literal["se", "conv", "gru_up", "gru_down", "lstm_up", "lstm_down", "random"]

# Initial scores of closed and open: a block starts open for 87 % of the images.
START = (0.1, 2.0)
REDUCTION = 4
HIDDEN = 16


class SEGate(nn.Module):
    """Scores by the means of the channels, as squeeze and excitation does: `W2 ReLU(W1 mean(x))`.

    Args:
        chans: Channels of the map.
        options: How many scores.
    """

    def __init__(self, chans: int, options: int) -> None:
        super().__init__()
        hidden = max(1, chans // REDUCTION)
        self.fc1 = nn.Linear(chans, hidden)
        self.fc2 = nn.Linear(hidden, options)
        _start(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, chans, h, w] to scores [B, options]."""
        return self.fc2(self.fc1(x.mean((2, 3))).relu())


class ConvGate(nn.Module):
    """Scores by the means of a strided 3x3 convolution: `W ReLU(mean(conv(x)))`.

    Args:
        chans: Channels of the map.
        options: How many scores.
    """

    def __init__(self, chans: int, options: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(chans, chans, 3, stride=2)
        self.fc2 = nn.Linear(chans, options)
        _start(self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, chans, h, w] to scores [B, options].

        Raises:
            Mistake: A map of fewer than three rows or columns.
        """
        if min(x.shape[-2:]) < 3:
            raise Mistake(
                f"the gate 'conv' looks at maps of 3x3 pixels or more, not {x.shape[-2]}x{x.shape[-1]}: take larger "
                "images, or another gate"
            )
        return self.fc2(self.conv1(x).mean((2, 3)).relu())


class LevelGates(nn.ModuleList):
    """A gate of its own for each level, in order."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C_i, h_i, w_i] to scores [B, options] of each."""
        return [gate(x) for gate, x in zip(self, maps, strict=True)]


class RecurrentGates(nn.Module):
    """One recurrent network that goes through the levels and scores each by those before it.

    Args:
        in_chans: Channels of the maps, finest first.
        options: How many scores for each.
        cell: `gru` or `lstm`.
        upward: Whether it goes from the finest level to the coarsest; else the other way.
    """

    def __init__(self, in_chans: Sequence[int], options: int, cell: str, upward: bool) -> None:
        super().__init__()
        self.upward = upward
        self.fc1 = nn.ModuleList(nn.Linear(chans, HIDDEN) for chans in in_chans)
        self.cell = cell
        self.add_module(cell, (nn.GRU if cell == "gru" else nn.LSTM)(HIDDEN, HIDDEN, batch_first=True))
        self.fc2 = nn.Linear(HIDDEN, options)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C_i, h_i, w_i] to scores [B, options] of each."""
        seen = torch.stack([fc(x.mean((2, 3))) for fc, x in zip(self.fc1, maps, strict=True)], 1)
        states, _ = self.get_submodule(self.cell)(seen if self.upward else seen.flip(1))
        return list(self.fc2(states if self.upward else states.flip(1)).unbind(1))


class RandomGates(nn.Module):
    """The same scores for every image, so that samples of them are blind to it: the control of every gate.

    Args:
        options: How many scores for each level. Of two, the second has probability `rate`; more are equally likely.
        rate: In (0, 1).

    Raises:
        Mistake: A rate out of its range.
    """

    scores: Tensor

    def __init__(self, options: int, rate: float) -> None:
        super().__init__()
        if not 0 < rate < 1:
            raise Mistake(f"random_rate is the share of the images that a level is open for, in (0, 1), not {rate}")
        scores = [math.log(1 - rate), math.log(rate)] if options == 2 else [0.0] * options
        self.register_buffer("scores", torch.tensor(scores), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The scores [B, options] of each of the maps [B, C_i, h_i, w_i]."""
        return [self.scores.expand(x.shape[0], -1) for x in maps]


def gates_of(name: GateName, in_chans: Sequence[int], options: int, random_rate: float) -> nn.Module:
    """The gates of a pyramid by their name.

    Args:
        name: One of `GateName`.
        in_chans: Channels of the maps, finest first.
        options: What a level has to choose from.
        random_rate: See `RandomGates`.

    Raises:
        Mistake: Unknown name.
    """
    if name not in get_args(GateName):
        raise Mistake(f"gate must be one of {', '.join(get_args(GateName))}, not {name!r}")
    if name == "random":
        return RandomGates(options, random_rate)
    if name in ("se", "conv"):
        return LevelGates((SEGate if name == "se" else ConvGate)(chans, options) for chans in in_chans)
    cell, _, direction = name.partition("_")
    return RecurrentGates(in_chans, options, cell, direction == "up")


def _start(scores: nn.Linear) -> None:
    # Which of several branches is taken is open at the start.
    if scores.out_features == len(START):
        with torch.no_grad():
            scores.bias.copy_(torch.tensor(START))
