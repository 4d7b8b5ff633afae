"""Official DeiT and PVT checkpoints with Dynamic Grained Encoders, and plain PVT and DPVT ones, <-> ours.

A plain DeiT's need no translation: our names are timm's, which are DeiT's own.

Reference: "Dynamic Grained Encoder for Vision Transformers", arXiv 2301.03831; layout of StevenGrove/vtpack at
38d5af0c. Queries and the pair of keys and values of its DeiT are two linear maps; ours, as timm's, is one.
"""

import re

import torch

from models.official.layout import SAME, WEIGHT, WEIGHT_BIAS, Layout, Maybe, Row, State, Table
from models.pixels import IMAGENET

_BLOCK = "blocks.{block}"
_THEIRS, _OURS = "block{stage+1}.{block}", "stages.{stage}.blocks.{block}"
_OF_ANY_BLOCK = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def _router(theirs: str, ours: str) -> list[Row]:
    return [
        (f"{theirs}.dge.router.gate", f"{ours}.router.gate", WEIGHT_BIAS),
        (f"{theirs}.dge.splits", f"{ours}.router.splits"),
    ]


_HEAD = Maybe([("head", SAME, WEIGHT_BIAS)])
_DEIT: Table = [
    ("pos_embed", SAME),
    Maybe([("cls_token", SAME)]),
    ("patch_embed.proj", SAME, WEIGHT_BIAS),
    *((f"{_BLOCK}.{part}", SAME, WEIGHT_BIAS) for part in _OF_ANY_BLOCK),
    (f"{_BLOCK}.attn.q", f"{_BLOCK}.attn.qkv", WEIGHT),
    Maybe([(f"{_BLOCK}.attn.q.bias", f"{_BLOCK}.attn.qkv.bias")]),
    *_router(_BLOCK, _BLOCK),
    ("norm", SAME, WEIGHT_BIAS),
    _HEAD,
]
_PYRAMID: list[Row | Maybe] = [
    ("pos_embed{stage+1}", "stages.{stage}.pos_embed"),
    ("patch_embed{stage+1}.proj", "stages.{stage}.patch_embed.proj", WEIGHT_BIAS),
    ("patch_embed{stage+1}.norm", "stages.{stage}.patch_embed.norm", WEIGHT_BIAS),
    *((f"{_THEIRS}.{part}", f"{_OURS}.{part}", WEIGHT_BIAS) for part in _OF_ANY_BLOCK),
    Maybe([("norm", SAME, WEIGHT_BIAS)]),
    _HEAD,
]
_REDUCED: list[Row | Maybe] = [
    ("cls_token", SAME),
    *((f"{_THEIRS}.attn.{part}", f"{_OURS}.attn.{part}", WEIGHT) for part in ("q", "kv")),
    *(Maybe([(f"{_THEIRS}.attn.{part}.bias", f"{_OURS}.attn.{part}.bias")]) for part in ("q", "kv")),
    Maybe([(f"{_THEIRS}.attn.{part}", f"{_OURS}.attn.{part}", WEIGHT_BIAS) for part in ("sr", "norm")], per="stage"),
]
_POINTS: list[Row | Maybe] = [
    (f"{_THEIRS}.attn.{part}", f"{_OURS}.attn.{part}", WEIGHT_BIAS) for part in ("v", "offsets", "attn_weight")
]
_QUERIES = re.compile(r"(blocks\.\d+\.attn\.)q\.(weight|bias)")


def _joined(state: State) -> State:
    """A DeiT's queries, and keys with values, as one map, under the name of the queries."""
    joined = dict(state)
    for name in state:
        if (found := _QUERIES.fullmatch(name)) and (others := f"{found[1]}kv.{found[2]}") in state:
            joined[name] = torch.cat([state[name], joined.pop(others)])
    return joined


def _split(state: State) -> State:
    split = dict(state)
    for name, value in state.items():
        if found := _QUERIES.fullmatch(name):
            split[name], split[f"{found[1]}kv.{found[2]}"] = value.tensor_split([len(value) // 3])
    return split


LAYOUT = Layout(
    "DGE",
    tables=[
        _DEIT,
        [*_PYRAMID, *_REDUCED, *_router(_THEIRS, _OURS)],
        [*_PYRAMID, *_REDUCED],
        [*_PYRAMID, *_POINTS],
    ],
    official=[r"blocks\.0\.dge\.splits|block1\.0\.norm1\.weight"],
    ours=[r"blocks\.0\.router\.splits|stages\.0\.blocks\.0\.attn\.(kv|offsets)\.weight"],
    unpack=_joined,
    pack=_split,
    pixels=IMAGENET | {"size": (256, 256), "interpolation": "bicubic", "crop": 0.875},
)
