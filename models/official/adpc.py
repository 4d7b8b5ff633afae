"""Official ADP-C checkpoints, with or without redesigned heads and confidence adaptivity <-> our names.

The trunk's names are HRNet's. A masked convolution has its scalar as `Lambda`, and a constant beside it, the squared
distances in a 7x7 kernel that the interpolation is a function of, which ours does without.

Reference: "Anytime Dense Prediction with Confidence Adaptivity", arXiv 2104.00749; layout of liuzhuang13/anytime at
8e88ad1e.
"""

import torch
from torch import Tensor

from models.official.hrnet import head, trunk
from models.official.layout import WEIGHT, WEIGHT_BIAS, Contents, Layout, State, Table
from models.pixels import IMAGENET

# Convolutions in the redesigned head of each exit.
_EXITS = {"exit1": 5, "exit2": 3, "exit3": 1, "last_layer": 0}
_DISTANCES = ".square_dis"
_REACH = 3
_CENTRE = 1e5


def _table(redesigned: bool, adaptive: bool) -> Table:
    scalar: Contents = {"Lambda": "falloff"} if adaptive else {}
    rows = list(trunk(WEIGHT | scalar))
    for i, (name, convs) in enumerate(_EXITS.items()):
        # The first exit is before any confidence.
        rows += head(name, f"exits.{i}", convs if redesigned else 0, WEIGHT_BIAS | scalar if i else WEIGHT_BIAS)
    return rows


def _without_distances(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith(_DISTANCES)}


def _with_distances(state: State) -> State:
    official = {}
    for name, value in state.items():
        official[name] = value
        if name.endswith(".Lambda"):
            official[name.removesuffix(".Lambda") + _DISTANCES] = _distances().to(value.device)
    return official


def _distances() -> Tensor:
    offset = torch.arange(-_REACH, _REACH + 1, dtype=torch.float32)
    squares = offset[:, None] ** 2 + offset**2
    # So far away that nothing is left of the centre's weight.
    squares[_REACH, _REACH] = _CENTRE
    return squares


LAYOUT = Layout(
    "ADP-C",
    tables=[_table(redesigned, adaptive) for redesigned in (True, False) for adaptive in (True, False)],
    official=[r"exit1\..*", r"transition1\..*"],
    ours=[r"exits\.3\.classifier\.weight", r"backbone\.stage2\..*"],
    unpack=_without_distances,
    pack=_with_distances,
    pixels=IMAGENET,
)
