"""Faster R-CNN with DyFPN, on mmdetection's ResNet <-> ours.

The seven branches of all levels are numbered through. Only structure B with the gate `se` was released; the names of
the others are those of the compiled modules beside it.

Reference: layout of Mingjian-Zhu/DyFPN at a74463b, on mmdetection 2.3.0.
"""

import re

import torch

from models.necks.inception import BRANCHES
from models.official.layout import SAME, WEIGHT_BIAS, Layout, Row, State, Table, holds
from models.official.mmdet import background_first, background_last, two_stage
from models.pixels import IMAGENET

_RECURRENT = holds("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
# Buffers that ours has beside the weights.
_OFFSETS, _TEMPERATURE = "neck.offsets", "neck.selection.temperature"


def _pyramid(skip: bool, gates: list[Row]) -> Table:
    branches = [f"{len(BRANCHES)}level" + (f"+{branch}" if branch else "") for branch in range(len(BRANCHES))]
    rows: list[Row] = [
        ("backbone.*", "backbone.body.*"),
        *(
            (f"neck.lateral_convs.{{{number}}}.conv", f"neck.blocks.{{level}}.{branch}", WEIGHT_BIAS)
            for branch, number in enumerate(branches)
        ),
        ("neck.fpn_convs.{level}.conv", "neck.fpn.layer_blocks.{level}.0", WEIGHT_BIAS),
        *gates,
    ]
    if skip:
        rows.append(("neck.skip_lateral_convs.{level}.conv", "neck.fpn.inner_blocks.{level}.0", WEIGHT_BIAS))
    return [*rows, (_OFFSETS, SAME), (_TEMPERATURE, SAME)] if gates else rows


def _own(name: str, first: str) -> list[Row]:
    """A gate of each level's own, whose first layer has this name."""
    return [
        (f"neck.{name}_{{level}}.{layer}", f"neck.gates.{{level}}.{layer}", WEIGHT_BIAS) for layer in (first, "fc2")
    ]


def _recurrent(cell: str) -> list[Row]:
    return [
        ("neck.fc1_{level}", "neck.gates.fc1.{level}", WEIGHT_BIAS),
        (f"neck.{cell}", f"neck.gates.{cell}", _RECURRENT),
        ("neck.fc2", "neck.gates.fc2", WEIGHT_BIAS),
    ]


_PYRAMIDS = [
    _pyramid(skip, gates)
    for skip, own in ((True, "gate"), (False, "attention_block"))
    for gates in (_own(own, "fc1"), _own(own, "conv1"), _recurrent("gru"), _recurrent("lstm"), [])
]


def _unpack(state: State) -> State:
    state = background_first(state)
    scores = [value for name, value in state.items() if re.fullmatch(r"neck\.(\w+_0\.)?fc2\.bias", name)]
    if not scores:
        return state
    branches = sum(bool(re.fullmatch(r"neck\.lateral_convs\.\d+\.conv\.weight", name)) for name in state)
    offsets = torch.zeros(branches // len(BRANCHES), len(scores[0]))
    return state | {_OFFSETS: offsets, _TEMPERATURE: torch.tensor(1.0)}


def _pack(state: State) -> State:
    return {name: value for name, value in background_last(state).items() if name not in (_OFFSETS, _TEMPERATURE)}


LAYOUT = Layout(
    "DyFPN's Faster R-CNN",
    tables=[two_stage(pyramid) for pyramid in _PYRAMIDS],
    official=[r"roi_head\.bbox_head\..*", r"neck\.lateral_convs\.6\.conv\.weight"],
    ours=[r"roi_heads\.0\..*", r"neck\.blocks\.0\.6\.weight", r"backbone\.body\.conv1\.weight"],
    left_out={"counters of frozen norms": r".*\.num_batches_tracked"},
    unpack=_unpack,
    pack=_pack,
    pixels=IMAGENET,
)
