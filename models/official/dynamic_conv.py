"""Checkpoints of the public Dynamic Convolution code <-> ours.

The names are those of the host in torchvision; a dynamic convolution adds `attention.fc1` and `attention.fc2`, 1x1
convolutions there and linear layers here. The temperature is not in these checkpoints: they were trained until it was
one, so it is one.

Reference: "Dynamic Convolution: Attention over Convolution Kernels", arXiv 1912.03458; layout of
kaijieshi7/Dynamic-convolution-Pytorch at 4befa50c.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.official import check_keys

_PARTS = ("fc1.weight", "fc2.weight", "fc2.bias")
_TEMPERATURE = "temperature"


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like weights of the public code."""
    return bool(_attentions(state)) and not any(name.endswith(f"attention.{_TEMPERATURE}") for name in state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like weights of ours."""
    return bool(_attentions(state)) and any(name.endswith(f"attention.{_TEMPERATURE}") for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Public weights to our layout.

    Args:
        state: Weights by public name.

    Returns:
        Weights by our name, and a temperature of one for every attention.

    Raises:
        LayoutError: An attention with missing or unknown parts.
    """
    prefixes = _attentions(state)
    _check(state, prefixes, _PARTS, "the public Dynamic Convolution layout")
    ours = {name: value.flatten(1) if _is_layer(name, prefixes) else value for name, value in state.items()}
    return ours | {f"{prefix}{_TEMPERATURE}": torch.tensor(1.0) for prefix in prefixes}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights to the public layout; the inverse of `to_ours` for a temperature of one.

    Args:
        state: Weights by our name.

    Returns:
        Weights by public name, without temperatures.

    Raises:
        LayoutError: An attention with missing or unknown parts.
    """
    prefixes = _attentions(state)
    _check(state, prefixes, (*_PARTS, _TEMPERATURE), "our Dynamic Convolution layout")
    return {
        name: value[:, :, None, None] if _is_layer(name, prefixes) else value
        for name, value in state.items()
        if not (name.endswith(_TEMPERATURE) and name.removesuffix(_TEMPERATURE) in prefixes)
    }


def _attentions(state: Mapping[str, Tensor]) -> list[str]:
    """Prefixes of the attentions of dynamic convolutions, each with its dot."""
    prefixes = [name.removesuffix("fc1.weight") for name in state if name.endswith("attention.fc1.weight")]
    return [prefix for prefix in prefixes if f"{prefix.removesuffix('attention.')}weight" in state]


def _is_layer(name: str, prefixes: list[str]) -> bool:
    module, _, leaf = name.rpartition("fc")
    return leaf in ("1.weight", "2.weight") and module in prefixes


def _check(state: Mapping[str, Tensor], prefixes: list[str], parts: tuple[str, ...], what: str) -> None:
    given = {name: value for name, value in state.items() if name.startswith(tuple(prefixes))}
    check_keys(given, {prefix + part for prefix in prefixes for part in parts}, what)
