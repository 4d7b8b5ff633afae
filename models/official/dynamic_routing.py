"""Official Dynamic Routing checkpoints <-> our names.

Names differ, shapes do not. The initial cell is our layer 0, so that the layers count from 1. Networks without gates
have constant ones in the place of gates, which are checked, dropped, and written again.

Reference: "Learning Dynamic Routing for Semantic Segmentation", arXiv 2003.10401; layout of
Megvii-BaseDetection/DynamicRouting at 2ad0a95.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.official import LayoutError, check_keys, some
from models.segmenters.dynamic_routing import DynamicRouting

# Official name and ours, within a cell and outside of cells; `#` is a number.
_CELL = [
    ("cell_ops._ops.0.op.0.", "body.0.depthwise."),
    ("cell_ops._ops.0.op.1.norm.", "body.0.norm."),
    ("cell_ops._ops.0.op.1.", "body.0.pointwise."),
    ("cell_ops._ops.0.op.2.", "body.2.depthwise."),
    ("cell_ops._ops.0.op.3.norm.", "body.2.norm."),
    ("cell_ops._ops.0.op.3.", "body.2.pointwise."),
    ("res_up.1.norm.", "up.1."),
    ("res_up.1.", "up.0."),
    ("res_down.1.norm.", "down.1."),
    ("res_down.1.", "down.0."),
    ("gate_conv_beta.0.norm.", "gate.reduce.1."),
    ("gate_conv_beta.0.", "gate.reduce.0."),
    ("gate_conv_beta.2.", "gate.score."),
]
_OUTSIDE = [
    ("backbone.stem.stem_1.norm.", "stem.0.1."),
    ("backbone.stem.stem_1.", "stem.0.0."),
    ("backbone.stem.stem_2.0.", "stem.1.depthwise."),
    ("backbone.stem.stem_2.1.norm.", "stem.1.norm."),
    ("backbone.stem.stem_2.1.", "stem.1.pointwise."),
    ("backbone.stem.stem_3.0.", "stem.3.depthwise."),
    ("backbone.stem.stem_3.1.norm.", "stem.3.norm."),
    ("backbone.stem.stem_3.1.", "stem.3.pointwise."),
    ("sem_seg_head.layer_decoder_list.#.norm.", "decoder.levels.#.1."),
    ("sem_seg_head.layer_decoder_list.#.", "decoder.levels.#.0."),
    ("sem_seg_head.predictor.", "decoder.predictor."),
]
_ONES = "gate_weights_beta"


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official Dynamic Routing weights."""
    return any(name.startswith("backbone.init_layer.cell_ops.") for name in state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our Dynamic Routing weights."""
    return any(re.match(r"layers\.\d+\.\d+\.body\.0\.depthwise\.", name) for name in state)


def our_name(name: str) -> str:
    """Official name of a parameter to ours; an unknown one stays as it is."""
    if match := re.match(r"backbone\.(init_layer|all_cell_list\.(\d+)\.(\d+))\.(.*)", name):
        _, layer, level, rest = match.groups()
        ours = _rename(rest, _CELL)
        return name if ours == rest else f"layers.{int(layer) + 1 if layer else 0}.{level or 0}.{ours}"
    return _rename(name, _OUTSIDE)


def official_name(name: str) -> str:
    """Our name of a parameter to the official one; an unknown one stays as it is."""
    if match := re.match(r"layers\.(\d+)\.(\d+)\.(.*)", name):
        layer, level, rest = int(match[1]), match[2], match[3]
        official = _rename(rest, [(ours, theirs) for theirs, ours in _CELL])
        return name if official == rest else f"backbone.{_cell(layer, level)}.{official}"
    return _rename(name, [(ours, official) for official, ours in _OUTSIDE])


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Missing or unknown keys, or stand-ins of gates that are not ones.
    """
    ones = {name: value for name, value in state.items() if name.endswith(f".{_ONES}")}
    if odd := sorted(name for name, value in ones.items() if not bool((value == 1).all())):
        raise LayoutError(f"paths without a gate that are not simply open: {some(odd)}")
    if kept := sorted(name for name in state.keys() - ones.keys() if our_name(name) == name):
        raise LayoutError(f"keys do not fit the official Dynamic Routing layout: unknown {some(kept)}")
    ours = {our_name(name): value for name, value in state.items() if name not in ones}
    network = _network(ours)
    check_keys(ours, set(network.state_dict()), "the official Dynamic Routing layout (names given are ours)")
    if ones:
        check_keys(ones, set(_stand_ins(network)), "the official Dynamic Routing layout without gates")
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout; the inverse of `to_ours`.

    Args:
        state: Weights by our name, of a network whose route is `dynamic` or `all`: no other has an official layout.

    Returns:
        Weights by official name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    network = _network(state)
    check_keys(state, set(network.state_dict()), "our Dynamic Routing layout")
    official = {official_name(name): value for name, value in state.items()}
    return official | {name: torch.ones(1, number, 1, 1) for name, number in _stand_ins(network).items()}


def _cell(layer: int, level: str | int) -> str:
    return f"all_cell_list.{layer - 1}.{level}" if layer else "init_layer"


def _stand_ins(network: DynamicRouting) -> dict[str, int]:
    """Official names of what stands for the gates of cells that have none, and the number of paths."""
    return {
        f"backbone.{_cell(layer, level)}.{_ONES}": len(cell.transforms)
        for layer, level, cell in network.cells()
        if cell.gate is None
    }


def _network(state: Mapping[str, Tensor]) -> DynamicRouting:
    """A network with the names of these, at their depth."""
    layers = [int(match[1]) for name in state if (match := re.match(r"layers\.(\d+)\.", name))]
    gated = any(".gate." in name for name in state)
    with torch.device("meta"):
        return DynamicRouting(1, max([3, *layers]), 2, route="dynamic" if gated else "all")


def _rename(name: str, names: list[tuple[str, str]]) -> str:
    for old, new in names:
        if match := re.match(re.escape(old).replace(r"\#", r"(\d+)"), name):
            return new.replace("#", match[1] if match.groups() else "") + name[match.end() :]
    return name
