"""Official Deformable DETR checkpoints <-> our names.

The official layout repeats tensors: shared heads once a decoder layer, and with refinement the heads once more inside
of the decoder. Ours holds each once. Keys of the backbone go through unchanged, but for their prefix.

Reference: "Deformable DETR", arXiv 2010.04159; layout of fundamentalvision/Deformable-DETR at 11169a60.
"""

import re

from models.official.layout import (
    ATTENTION,
    SAME,
    WEIGHT,
    WEIGHT_BIAS,
    Layout,
    Row,
    State,
    Table,
    inside,
    within,
)
from models.pixels import IMAGENET

# Batch norms are frozen.
FROZEN = {"counters of frozen norms": r".*\.num_batches_tracked"}
_HEADS = ("class_embed", "bbox_embed")
_DECODER = "transformer.decoder"
_PARTS = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_DEFORMABLE = {name: name for part in _PARTS for name in within(part, part, WEIGHT_BIAS)}


def _layer(side: str, rows: list[Row]) -> list[Row]:
    return inside(rows, f"transformer.{side}.layers.{{{side}}}", f"transformer.{side}.{{{side}}}")


_FFN: list[Row] = [("linear1", "ffn.linear1", WEIGHT_BIAS), ("linear2", "ffn.linear2", WEIGHT_BIAS)]
_TRANSFORMER: Table = [
    ("backbone.0.body.*", "backbone.body.*"),
    ("input_proj.{level}.0", SAME, WEIGHT_BIAS),
    ("input_proj.{level}.1", SAME, WEIGHT_BIAS),
    ("transformer.level_embed", SAME),
    *_layer(
        "encoder",
        [
            ("self_attn", "attention", _DEFORMABLE),
            ("norm1", "attention_norm", WEIGHT_BIAS),
            *_FFN,
            ("norm2", "ffn_norm", WEIGHT_BIAS),
        ],
    ),
    *_layer(
        "decoder",
        [
            ("cross_attn", "cross_attention", _DEFORMABLE),
            ("norm1", "cross_norm", WEIGHT_BIAS),
            ("self_attn", "self_attention", ATTENTION),
            ("norm2", "self_norm", WEIGHT_BIAS),
            *_FFN,
            ("norm3", "ffn_norm", WEIGHT_BIAS),
        ],
    ),
    # Without refinement there is one of each.
    ("class_embed.{head}", SAME, WEIGHT_BIAS),
    *((f"bbox_embed.{{head}}.layers.{i}", SAME, WEIGHT_BIAS) for i in range(3)),
]
ONE_STAGE: Table = [
    *_TRANSFORMER,
    ("query_embed", SAME, WEIGHT),
    ("transformer.reference_points", "reference_points", WEIGHT_BIAS),
]
# The heads of proposals, which follow those of the decoder's layers in the official layout, are renamed by `merged`.
TWO_STAGE: Table = [
    *_TRANSFORMER,
    ("transformer.enc_output", "proposals.token_proj", WEIGHT_BIAS),
    ("transformer.enc_output_norm", "proposals.token_norm", WEIGHT_BIAS),
    ("transformer.pos_trans", "proposals.query_proj", WEIGHT_BIAS),
    ("transformer.pos_trans_norm", "proposals.query_norm", WEIGHT_BIAS),
    ("proposals.class_embed", SAME, WEIGHT_BIAS),
    *((f"proposals.bbox_embed.layers.{i}", SAME, WEIGHT_BIAS) for i in range(3)),
]


def merged(state: State) -> State:
    """Official weights without repetitions."""
    inside_decoder = tuple(f"{_DECODER}.{head}." for head in _HEADS)
    once = {name: value for name, value in state.items() if not name.startswith(inside_decoder)}
    # Without refinement there is one of each.
    layers, shared = count(once, f"{_DECODER}.layers"), len(once) == len(state)
    for head in _HEADS:
        if "transformer.enc_output.weight" in once:
            for name in [name for name in once if name.startswith(f"{head}.{layers}.")]:
                once[name.replace(f"{head}.{layers}.", f"proposals.{head}.")] = once.pop(name)
        if shared:
            once = first_of(once, head, layers)
    return once


def repeated(state: State) -> State:
    """The inverse of `merged`."""
    layers = count(state, f"{_DECODER}.layers")
    shared = count(state, "class_embed") == 1 < layers
    two_stage = "transformer.enc_output.weight" in state
    official: State = {}
    for name, value in state.items():
        head = name.removeprefix("proposals.").split(".")[0]
        copies = [name]
        if name.startswith("proposals."):
            copies = [name.replace(f"proposals.{head}.", f"{head}.{layers}.")]
        elif shared and head in _HEADS:
            copies = [name.replace(f"{head}.0.", f"{head}.{layer}.") for layer in range(layers)]
        if not shared and head in _HEADS and (head == "bbox_embed" or two_stage):
            copies += [f"{_DECODER}.{copy}" for copy in copies]
        official |= dict.fromkeys(copies, value)
    return official


def first_of(state: State, module: str, copies: int) -> State:
    """Weights without the modules `module.1`, `module.2` ..., of so many copies."""
    others = tuple(f"{module}.{copy}." for copy in range(1, copies))
    return {name: value for name, value in state.items() if not name.startswith(others)}


def count(state: State, prefix: str) -> int:
    """One more than the largest number that follows a prefix."""
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


# SOLQ's has vectors besides.
LAYOUT = Layout(
    "Deformable DETR",
    tables=[ONE_STAGE, TWO_STAGE],
    official=[r"transformer\.encoder\.layers\.0\.self_attn\.sampling_offsets\.weight", r"!vector_embed\..*"],
    ours=[r"transformer\.encoder\.0\.attention\.sampling_offsets\.weight", r"!vector_embed\..*"],
    unpack=merged,
    left_out=FROZEN,
    pack=repeated,
    pixels=IMAGENET,
)
