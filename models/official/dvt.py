"""Official DVT checkpoints <-> our names, and the costs and thresholds that come with the weights.

The published cascades have three stages, which key names spell out. T2T and DeiT hosts differ in the tokeniser and in
the biases of queries, keys and values; the reuse of features and of relations can each be absent.

Reference: "Not All Images are Worth 16x16 Words", arXiv 2105.15075; layout of blackfeather-wang/
Dynamic-Vision-Transformer at 22cc8951.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.anytime import Policy
from models.official import LayoutError, check_keys, some

_STAGES = ("less_less_token", "less_token", "normal_token")
# Part of an official name, part of ours; the first that occurs decides. `resuse` is the official spelling.
_PARTS = [
    ("patch_embed.proj.", "tokenizer.proj."),
    ("tokens_to_token.attention1.mlp.0.", "tokenizer.attention1.mlp.fc1."),
    ("tokens_to_token.attention1.mlp.2.", "tokenizer.attention1.mlp.fc2."),
    ("tokens_to_token.attention2.mlp.0.", "tokenizer.attention2.mlp.fc1."),
    ("tokens_to_token.attention2.mlp.2.", "tokenizer.attention2.mlp.fc2."),
    ("tokens_to_token.", "tokenizer."),
    (".feature_resuse_mlp.0.", ".feature_reuse.norm."),
    (".feature_resuse_mlp.1.", ".feature_reuse.mlp."),
    ("relation_reuse_conv.0.", "relation_reuse.mlp.fc1."),
    ("relation_reuse_conv.2.", "relation_reuse.mlp.fc2."),
]


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official DVT weights."""
    return any(name == f"{stage}.cls_token" for name in state for stage in _STAGES)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like DVT weights in our naming."""
    return any(re.fullmatch(r"stages\.\d+\.cls_token", name) for name in state)


def our_name(name: str) -> str:
    """Official name of a parameter to ours; an unknown one stays as it is."""
    stage, _, rest = name.partition(".")
    return f"stages.{_STAGES.index(stage)}.{_rename(rest, _PARTS)}" if stage in _STAGES else name


def official_name(name: str) -> str:
    """Our name of a parameter to the official one; an unknown one stays as it is."""
    match = re.match(r"stages\.([0-2])\.(.*)", name)
    if match is None:
        return name
    return f"{_STAGES[int(match[1])]}.{_rename(match[2], [(ours, official) for official, ours in _PARTS])}"


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name.

    Returns:
        Weights by our name; values as they are.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    check_keys(state, _official_names(state), "the official DVT layout")
    return {our_name(name): value for name, value in state.items()}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout; the inverse of `to_ours`.

    Args:
        state: Weights by our name, of a cascade of three stages: the official layout has no other.

    Returns:
        Weights by official name; values as they are.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    official = {official_name(name): value for name, value in state.items()}
    what = "our DVT layout of three stages (names given are the official ones)"
    check_keys(official, _official_names(official), what)
    return official


def published_exits(checkpoint: Mapping[str, Any]) -> tuple[list[float], list[Policy]]:
    """When images leave a published cascade, which its checkpoint holds next to the weights.

    Args:
        checkpoint: What `torch.load` returned, with `flops` (multiply-adds up to each exit, in 1e9) and
            `dynamic_threshold` (thresholds of the largest softmax probability, one row a budget).

    Returns:
        Multiply-adds up to each exit, and a policy for each budget, in the checkpoint's order.

    Raises:
        LayoutError: An entry is missing, or there are not as many thresholds as costs in every row.
    """
    if missing := [name for name in ("flops", "dynamic_threshold") if name not in checkpoint]:
        raise LayoutError(f"no exits in it: missing {some(missing)} (it has {some(checkpoint)})")
    costs = [1e9 * float(cost) for cost in checkpoint["flops"]]
    thresholds = torch.as_tensor(checkpoint["dynamic_threshold"], dtype=torch.float64)
    if thresholds.ndim != 2 or thresholds.shape[1] != len(costs):
        raise LayoutError(f"dynamic_threshold is {tuple(thresholds.shape)}, not [budgets, {len(costs)}] as flops tells")
    return costs, [Policy("max_prob", tuple(row)) for row in thresholds.tolist()]


def _rename(rest: str, parts: list[tuple[str, str]]) -> str:
    return next((rest.replace(old, new, 1) for old, new in parts if old in rest), rest)


def _official_names(state: Mapping[str, Tensor]) -> set[str]:
    """The complete set of names for the host, the depth and the kinds of reuse that these names tell."""
    t2t, features, relations = (
        any(part in name for name in state)
        for part in (".tokens_to_token.", ".feature_resuse_mlp.", ".relation_reuse_conv.")
    )
    depth = 1 + max((int(match[1]) for name in state if (match := re.match(r"\w+\.blocks\.(\d+)\.", name))), default=0)
    names = set()
    for stage in _STAGES:
        own = ["norm.weight", "norm.bias", "head.weight", "head.bias", "cls_token", "pos_embed"]
        layers = ["patch_embed.proj"]
        if t2t:
            parts = ("kqv", "proj", "norm1", "norm2", "mlp.0", "mlp.2")
            layers = ["tokens_to_token.project"]
            layers += [f"tokens_to_token.attention{i}.{part}" for i in (1, 2) for part in parts]
            own += [f"tokens_to_token.attention{i}.w" for i in (1, 2)]
        for block in range(depth):
            layers += [f"blocks.{block}.{part}" for part in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")]
            own.append(f"blocks.{block}.attn.qkv.weight")
            if not t2t:
                own.append(f"blocks.{block}.attn.qkv.bias")
            if features and stage != _STAGES[0]:
                layers += [f"blocks.{block}.feature_resuse_mlp.{part}" for part in ("0", "1.fc1", "1.fc2")]
        if relations and stage != _STAGES[0]:
            layers += ["relation_reuse_conv.0", "relation_reuse_conv.2"]
        own += [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
        names |= {f"{stage}.{name}" for name in own}
    return names
