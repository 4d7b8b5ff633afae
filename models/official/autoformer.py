"""Official AutoFormer super networks <-> ours.

Rows of the official maps to queries, keys and values take turns: query 0, key 0, value 0, query 1. Ours come one kind
after the other, as timm's do, so that a narrower network has a prefix of each kind. Entries of their bias stay in their
places (`models.supernet.entangled.EntangledQKV`). A plain network that is extracted has our names.

Reference: "AutoFormer: Searching Transformers for Visual Recognition", arXiv 2107.00651; layout of microsoft/Cream at
4a13c4091e78, folder AutoFormer.
"""

from __future__ import annotations

import math
import re
from typing import Any

from torch import Tensor

from models.official.layout import SAME, WEIGHT, WEIGHT_BIAS, Layout, Maybe, State, holds
from models.pixels import IMAGENET

_BLOCK = "blocks.{block}"
_QKV = re.compile(r"blocks\.\d+\.attn\.qkv\.weight")
_TABLES = holds("embeddings_table_v", "embeddings_table_h")


def _rows(weight: Tensor, inner: int, outer: int) -> Tensor:
    return weight.unflatten(0, (inner, outer)).transpose(0, 1).flatten(0, 1)


def _one_by_one(state: State) -> State:
    """All queries first, then all keys, then all values."""
    return {n: _rows(value, len(value) // 3, 3) if _QKV.fullmatch(n) else value for n, value in state.items()}


def _by_turns(state: State) -> State:
    return {n: _rows(value, 3, len(value) // 3) if _QKV.fullmatch(n) else value for n, value in state.items()}


def _options(state: State) -> dict[str, Any]:
    """Options of `AutoFormer` for weights of a plain network, the widest of a super network."""
    dim, in_chans, patch, _ = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    table = state.get("blocks.0.attn.rel_pos_embed_k.embeddings_table_v")
    head_dim = 64 if table is None else table.shape[1]
    hidden = [len(state[f"blocks.{i}.mlp.fc1.weight"]) for i in range(depth)]
    options: dict[str, Any] = {
        "img_size": patch * math.isqrt(state["pos_embed"].shape[1] - 1),
        "patch_size": patch,
        "in_chans": in_chans,
        "embed_dim": dim,
        "num_heads": [state[f"blocks.{i}.attn.proj.weight"].shape[1] // head_dim for i in range(depth)],
        # Widths are rounded down; the smallest ratio that gives one is what a person would write.
        "mlp_ratios": [_ratio(dim, width) for width in hidden],
        "head_dim": head_dim,
        "relative_position": table is not None,
    }
    if "blocks.0.attn.qkv.bias" not in state:
        options["qkv_bias"] = False
    return options if table is None else options | {"max_relative_position": len(table) // 2 - 1}


def _ratio(dim: int, width: int) -> float:
    """The roundest ratio whose product with `dim` is `width`, rounded down."""
    ratios = (math.ceil(width / dim * 10**digits) / 10**digits for digits in range(17))
    return next(ratio for ratio in ratios if int(dim * ratio) == width)


LAYOUT = Layout(
    "AutoFormer",
    tables=[
        [
            ("cls_token", SAME),
            ("pos_embed", SAME),
            ("patch_embed_super.proj", "patch_embed.proj", WEIGHT_BIAS),
            (f"{_BLOCK}.attn_layer_norm", f"{_BLOCK}.norm1", WEIGHT_BIAS),
            (f"{_BLOCK}.attn.qkv", SAME, WEIGHT),
            Maybe([(f"{_BLOCK}.attn.qkv.bias", SAME)]),
            (f"{_BLOCK}.attn.proj", SAME, WEIGHT_BIAS),
            Maybe([(f"{_BLOCK}.attn.rel_pos_embed_{kind}", SAME, _TABLES) for kind in ("k", "v")]),
            (f"{_BLOCK}.ffn_layer_norm", f"{_BLOCK}.norm2", WEIGHT_BIAS),
            (f"{_BLOCK}.fc1", f"{_BLOCK}.mlp.fc1", WEIGHT_BIAS),
            (f"{_BLOCK}.fc2", f"{_BLOCK}.mlp.fc2", WEIGHT_BIAS),
            ("norm", SAME, WEIGHT_BIAS),
            Maybe([("head", SAME, WEIGHT_BIAS)]),
        ]
    ],
    official=[r"patch_embed_super\.proj\.weight"],
    ours=[r"blocks\.0\.attn\.rel_pos_embed_k\.embeddings_table_v"],
    unpack=_one_by_one,
    pack=_by_turns,
    pixels=IMAGENET | {"size": (224, 224), "interpolation": "bicubic", "crop": 0.875},
    options=_options,
)
