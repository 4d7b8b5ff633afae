"""Checkpoints of the public Dynamic Convolution code <-> ours.

The names are those of the host in torchvision; a dynamic convolution adds `attention.fc1` and `attention.fc2`, 1x1
convolutions there and linear layers here. The temperature is not in these checkpoints: they were trained until it was
one, so it is one.

Reference: "Dynamic Convolution: Attention over Convolution Kernels", arXiv 1912.03458; layout of
kaijieshi7/Dynamic-convolution-Pytorch at 4befa50c.
"""

import re

import torch

from models.official.layout import SAME, Layout, State, check_keys

_LAYER = re.compile(r"(.*attention\.)fc[12]\.weight")
_ATTENTION = re.compile(r".*attention\..*")


def _as_linear(state: State) -> State:
    _check(state)
    ours = {name: value.flatten(1) if _LAYER.fullmatch(name) else value for name, value in state.items()}
    return ours | {f"{attention}temperature": torch.tensor(1.0) for attention in _attentions(state)}


def _as_convolutions(state: State) -> State:
    official = {
        name: value[:, :, None, None] if _LAYER.fullmatch(name) else value
        for name, value in state.items()
        if not name.endswith("attention.temperature")
    }
    _check(official)
    return official


def _check(state: State) -> None:
    """Refuse attentions that are not whole, or without the kernels that they weigh."""
    attentions = _attentions(state)
    kernels = {f"{attention.removesuffix('attention.')}weight" for attention in attentions}
    given = {name: value for name, value in state.items() if _ATTENTION.fullmatch(name) or name in kernels}
    parts = ("fc1.weight", "fc2.weight", "fc2.bias")
    expected = kernels | {attention + part for attention in attentions for part in parts}
    check_keys(given, expected, "the public Dynamic Convolution layout")


def _attentions(state: State) -> set[str]:
    return {match[1] for name in state if (match := _LAYER.fullmatch(name))}


LAYOUT = Layout(
    "Dynamic Convolution",
    tables=[[("*", SAME)]],
    official=[r".*attention\.fc1\.weight", r"!.*attention\.(temperature|fc1\.bias)"],
    ours=[r".*attention\.fc1\.weight", r".*attention\.temperature"],
    unpack=_as_linear,
    pack=_as_convolutions,
)
