"""Official SOLQ checkpoints <-> our names: Deformable DETR's layout, a shared vector head, and Swin backbones.

The vector head stands once a decoder layer in the official layout, and once in ours. Official Swins shrink the map at
the end of a stage and store an index table for each block; timm's shrink it at the start of the next, and compute it.

Reference: "SOLQ", arXiv 2106.02351; layout of megvii-research/SOLQ at 97f537cc.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.official import check_keys
from models.official import deformable_detr as base

_TABLE = "relative_position_bias_table"
_INDEX = "relative_position_index"


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official SOLQ weights."""
    return base.is_deformable(state) and "vector_embed.0.layers.0.weight" in state


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our SOLQ weights."""
    return base.is_ours(state) and "vector_embed.layers.0.weight" in state


def official_name(name: str) -> str:
    """Our name of a parameter to the official one, the first of those that repeat it."""
    return _moved(base.official_name(name), -1).replace("vector_embed.", "vector_embed.0.")


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names, each tensor once.

    Args:
        state: Weights by official name; counters of parameters and operations among them are left out.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Missing or unknown keys, or repeated tensors that differ.
    """
    kept = {_moved(name, 1): value for name, value in state.items() if not name.endswith(f".{_INDEX}")}
    base.merge(kept, [f"vector_embed.{i}." for i in range(base.count(kept, "vector_embed"))], "vector_embed.")
    ours = base.strip(kept)
    check_keys(ours, _our_names(ours), "the official SOLQ layout (names given are ours)")
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout with its repetitions; the inverse of `to_ours`.

    Args:
        state: Weights by our name.

    Returns:
        Weights by official name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    check_keys(state, _our_names(state), "our SOLQ layout")
    layers = base.count(state, "transformer.decoder")
    official: dict[str, Tensor] = {}
    for name, value in base.repeat(state).items():
        if name.startswith("vector_embed."):
            rest = name.removeprefix("vector_embed.")
            official |= {f"vector_embed.{layer}.{rest}": value for layer in range(layers)}
            continue
        official[_moved(name, -1)] = value
        if name.endswith(f".{_TABLE}"):
            official[name.replace(_TABLE, _INDEX)] = _index(value)
    return official


def _our_names(state: Mapping[str, Tensor]) -> set[str]:
    return base.our_names(state) | {f"vector_embed.layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}


def _moved(name: str, stages: int) -> str:
    """An official name with the layer that shrinks a Swin's map moved to another stage; other names stay."""
    match = re.fullmatch(r"(backbone\.0\.body\.layers\.)(\d+)(\.downsample\.(?:norm|reduction)\..*)", name)
    return f"{match[1]}{int(match[2]) + stages}{match[3]}" if match else name


def _index(table: Tensor) -> Tensor:
    """Row of the bias table [(2 w - 1)^2, heads] for each pair of positions in a window of side w: [w^2, w^2]."""
    span = math.isqrt(len(table))
    side = (span + 1) // 2
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = places[:, None] - places[None] + side - 1
    return apart[..., 0] * span + apart[..., 1]
