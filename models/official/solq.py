"""Official SOLQ checkpoints <-> our names: Deformable DETR's layout, a shared vector head, and Swin backbones.

The vector head stands once a decoder layer in the official layout, and once in ours. Official Swins shrink the map at
the end of a stage and store an index table for each block; timm's shrink it at the start of the next, and compute it.

Reference: "SOLQ", arXiv 2106.02351; layout of megvii-research/SOLQ at 97f537cc.
"""

import math

import torch
from torch import Tensor

from models.official.deformable_detr import FROZEN, ONE_STAGE, TWO_STAGE, count, first_of, merged, repeated
from models.official.layout import WEIGHT, WEIGHT_BIAS, Layout, Maybe, State, Table
from models.pixels import IMAGENET

_TABLE, _INDEX = "relative_position_bias_table", "relative_position_index"
_VECTORS = "vector_embed"
_SHRINK, _OUR_SHRINK = "backbone.0.body.layers.{stage}.downsample", "backbone.body.layers.{stage+1}.downsample"
_OWN: Table = [
    *((f"{_VECTORS}.0.layers.{i}", f"{_VECTORS}.layers.{i}", WEIGHT_BIAS) for i in range(3)),
    Maybe(
        [
            (f"{_SHRINK}.norm", f"{_OUR_SHRINK}.norm", WEIGHT_BIAS),
            (f"{_SHRINK}.reduction", f"{_OUR_SHRINK}.reduction", WEIGHT),
        ]
    ),
]


def _unpacked(state: State) -> State:
    kept = {name: value for name, value in state.items() if not name.endswith(f".{_INDEX}")}
    return first_of(merged(kept), _VECTORS, count(kept, _VECTORS))


def _packed(state: State) -> State:
    layers = count(state, "transformer.decoder.layers")
    official: State = {}
    for name, value in repeated(state).items():
        official[name] = value
        if name.startswith(f"{_VECTORS}.0."):
            copies = (name.replace(f"{_VECTORS}.0.", f"{_VECTORS}.{layer}.") for layer in range(layers))
            official |= dict.fromkeys(copies, value)
        if name.endswith(f".{_TABLE}"):
            official[name.replace(_TABLE, _INDEX)] = _index(value)
    return official


def _index(table: Tensor) -> Tensor:
    """Row of the bias table [(2 w - 1)^2, heads] for each pair of positions in a window of side w: [w^2, w^2]."""
    span = math.isqrt(len(table))
    side = (span + 1) // 2
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = places[:, None] - places[None] + side - 1
    return apart[..., 0] * span + apart[..., 1]


LAYOUT = Layout(
    "SOLQ",
    tables=[[*_OWN, *ONE_STAGE], [*_OWN, *TWO_STAGE]],
    official=[r"transformer\.encoder\.layers\.0\.self_attn\.sampling_offsets\.weight", r"vector_embed\.0\.layers\..*"],
    ours=[r"transformer\.encoder\.0\.attention\.sampling_offsets\.weight", r"vector_embed\.layers\..*"],
    left_out=FROZEN,
    unpack=_unpacked,
    pack=_packed,
    pixels=IMAGENET,
)
