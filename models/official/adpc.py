"""Official ADP-C checkpoints, with or without redesigned heads and confidence adaptivity <-> our names.

The trunk's names are HRNet's. A masked convolution has its scalar as `Lambda`, and a constant beside it, the squared
distances that the interpolation is a function of, which is checked and left out.

Reference: "Anytime Dense Prediction with Confidence Adaptivity", arXiv 2104.00749; layout of liuzhuang13/anytime at
8e88ad1e.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.official import LayoutError, check_keys
from models.official.hrnet import head_names, rename, rename_back, trunk_names

_EXITS = ("exit1", "exit2", "exit3", "last_layer")
# Halvings in the redesigned head of each exit.
_POOLS = (3, 2, 1, 0)
_REACH = 3
_CENTRE = 1e5


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official weights of a network with exits."""
    names = {name.removeprefix("model.") for name in state}
    return any(name.startswith("exit1.") for name in names) and any(name.startswith("transition1.") for name in names)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our ADP-C weights."""
    return "exits.3.classifier.weight" in state and any(name.startswith("backbone.stage2.") for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name, with or without `model.`.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Missing or unknown keys, or distances other than those of a 7x7 kernel.
    """
    bare = {name.removeprefix("model."): value for name, value in state.items()}
    renamed = rename(bare, _ends(_pooled(bare, "exit1.21.weight")))
    ours = {}
    for name, value in renamed.items():
        if name.endswith(".square_dis"):
            if value.shape != _distances().shape or not torch.equal(value.float(), _distances().to(value.device)):
                raise LayoutError(
                    f"{name}: not the squared distances of a 7x7 kernel, which are all that fits our layers"
                )
            if f"{name.removesuffix('square_dis')}Lambda" not in renamed:
                raise LayoutError(f"keys do not fit the official ADP-C layout: {name} without its Lambda")
        else:
            ours[name.removesuffix("Lambda") + "falloff" if name.endswith(".Lambda") else name] = value
    check_keys(ours, _our_names(ours), "the official ADP-C layout (names given are ours)")
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout, without `model.`; the inverse of `to_ours`.

    Args:
        state: Weights by our name.

    Returns:
        Weights by official name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    check_keys(state, _our_names(state), "our ADP-C layout")
    official = {}
    for name, value in rename_back(state, _ends(_pooled(state, "exits.0.convs.4.0.weight"))).items():
        if name.endswith(".falloff"):
            layer = name.removesuffix("falloff")
            official[f"{layer}Lambda"] = value
            official[f"{layer}square_dis"] = _distances().to(value.device)
        else:
            official[name] = value
    return official


def _pooled(state: Mapping[str, Tensor], name: str) -> bool:
    return name in state


def _ends(pooled: bool) -> dict[str, str]:
    """Beginnings of the names of the heads' layers, official to ours."""
    ends = {}
    for exit, (official, pools) in enumerate(zip(_EXITS, _POOLS, strict=True)):
        ours = f"exits.{exit}"
        if pools and pooled:
            # Every convolution, with its norm and activation, follows a layer that pools or doubles.
            convs = 2 * pools - 1
            for i in range(convs):
                for part in (0, 1):
                    ends[f"{official}.{1 + 4 * i + part}."] = f"{ours}.convs.{i}.{part}."
            ends[f"{official}.{1 + 4 * convs}."] = f"{ours}.classifier."
        else:
            ends |= {f"{official}.{part}.": f"{ours}.convs.0.{part}." for part in (0, 1)}
            ends[f"{official}.3."] = f"{ours}.classifier."
    return ends


def _our_names(state: Mapping[str, Tensor]) -> set[str]:
    names = trunk_names(state, "backbone.")
    pooled = _pooled(state, "exits.0.convs.4.0.weight")
    for exit, pools in enumerate(_POOLS):
        names |= head_names(f"exits.{exit}", pools if pooled else 0)
    if any(name.endswith(".falloff") for name in state):
        dense = ("backbone.conv", "backbone.layer1.", "exits.0.")
        convs = {name.removesuffix("weight") for name in names if name.endswith(".weight")}
        convs -= {name.removesuffix("running_mean") for name in names if name.endswith(".running_mean")}
        names |= {f"{conv}falloff" for conv in convs if not conv.startswith(dense)}
    return names


def _distances() -> Tensor:
    offset = torch.arange(-_REACH, _REACH + 1, dtype=torch.float32)
    squares = offset[:, None] ** 2 + offset**2
    # So far away that nothing is left of the centre's weight.
    squares[_REACH, _REACH] = _CENTRE
    return squares
