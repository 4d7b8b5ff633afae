"""Official Dynamic Routing checkpoints <-> our names.

Names differ, shapes do not. The initial cell is our layer 0, so that the layers count from 1. Networks without gates
have constant ones in the place of gates, which ours do without.

Reference: "Learning Dynamic Routing for Semantic Segmentation", arXiv 2003.10401; layout of
Megvii-BaseDetection/DynamicRouting at 2ad0a95.
"""

import torch

from models.official.layout import (
    BATCH_NORM,
    WEIGHT_BIAS,
    Contents,
    Layout,
    Maybe,
    Row,
    State,
    Table,
    inside,
    within,
)
from models.pixels import BGR_BYTES

# A norm is a part of its convolution there, and follows it here.
_CONV: Contents = {"weight": "0.weight"} | within("norm", "1", BATCH_NORM)


def _separable(first: int) -> Contents:
    """A convolution of each channel and a pointwise one with its norm, at this place of a sequence and the next."""
    pointwise = {"weight": "pointwise.weight"} | within("norm", "norm", BATCH_NORM)
    return {f"{first}.weight": "depthwise.weight"} | {f"{first + 1}.{name}": ours for name, ours in pointwise.items()}


_BODY: list[Row] = [
    ("cell_ops._ops.0.op", "body.0", _separable(0)),
    ("cell_ops._ops.0.op", "body.2", _separable(2)),
]
_UP: Row = ("res_up.1", "up", _CONV)
_DOWN: Row = ("res_down.1", "down", _CONV)
_GATE: list[Row] = [
    ("gate_conv_beta.0", "gate.reduce", _CONV),
    ("gate_conv_beta.2", "gate.score", WEIGHT_BIAS),
]
# Where a cell of each level can send its map besides its own level.
_PATHS: list[list[Row]] = [[_DOWN], [_UP, _DOWN], [_UP, _DOWN], [_UP]]


def _table(gated: bool) -> Table:
    cell = _BODY + _GATE * gated
    table: list[Row | Maybe] = [*inside([*cell, _DOWN], "backbone.init_layer", "layers.0.0")]
    for level, paths in enumerate(_PATHS):
        at = f"backbone.all_cell_list.{{layer}}.{level}", f"layers.{{layer+1}}.{level}"
        # The coarser levels open one a layer; the last layer sends nothing to other levels.
        table += inside(cell, *at) if level < 2 else [Maybe(inside(cell, *at), per="layer")]
        table += [Maybe(inside(paths, *at), per="layer")]
    return [
        *table,
        ("backbone.stem.stem_1", "stem.0", _CONV),
        ("backbone.stem.stem_2", "stem.1", _separable(0)),
        ("backbone.stem.stem_3", "stem.3", _separable(0)),
        ("sem_seg_head.layer_decoder_list.{level}", "decoder.levels.{level}", _CONV),
        ("sem_seg_head.predictor", "decoder.predictor", WEIGHT_BIAS),
    ]


_ONES = ".gate_weights_beta"


def _without_ones(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith(_ONES)}


def _with_ones(state: State) -> State:
    """Ones of every cell without a gate, as many as it has paths."""
    cells = [name.removesuffix(".cell_ops._ops.0.op.0.weight") for name in state]
    cells = [cell for cell, name in zip(cells, state, strict=True) if cell != name]
    paths = {cell: 1 + sum(f"{cell}.res_{way}.1.weight" in state for way in ("up", "down")) for cell in cells}
    gated = any(".gate_conv_beta." in name for name in state)
    return state if gated else state | {f"{cell}{_ONES}": torch.ones(1, paths[cell], 1, 1) for cell in cells}


LAYOUT = Layout(
    "Dynamic Routing",
    tables=[_table(gated=True), _table(gated=False)],
    official=[r"backbone\.init_layer\.cell_ops\..*"],
    ours=[r"layers\.\d+\.\d+\.body\.0\.depthwise\.weight"],
    unpack=_without_ones,
    pack=_with_ones,
    pixels=BGR_BYTES,
)
