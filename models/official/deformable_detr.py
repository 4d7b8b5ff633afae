"""Official Deformable DETR checkpoints <-> our names.

The official layout repeats tensors: shared heads once a decoder layer, and with refinement the heads once more inside
of the decoder. Ours holds each once. Keys of the backbone go through unchanged, but for their prefix.

Reference: "Deformable DETR", arXiv 2010.04159; layout of fundamentalvision/Deformable-DETR at 11169a60.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from models.official import LayoutError, check_keys, some

# Official name and ours; `#` is a number. The first row that matches decides.
_NAMES = [
    ("backbone.0.body.", "backbone.body."),
    ("transformer.reference_points.", "reference_points."),
    ("transformer.enc_output.", "proposals.token_proj."),
    ("transformer.enc_output_norm.", "proposals.token_norm."),
    ("transformer.pos_trans.", "proposals.query_proj."),
    ("transformer.pos_trans_norm.", "proposals.query_norm."),
    ("transformer.encoder.layers.#.self_attn.", "transformer.encoder.#.attention."),
    ("transformer.encoder.layers.#.norm1.", "transformer.encoder.#.attention_norm."),
    ("transformer.encoder.layers.#.norm2.", "transformer.encoder.#.ffn_norm."),
    ("transformer.encoder.layers.#.linear", "transformer.encoder.#.ffn.linear"),
    ("transformer.decoder.layers.#.cross_attn.", "transformer.decoder.#.cross_attention."),
    ("transformer.decoder.layers.#.norm1.", "transformer.decoder.#.cross_norm."),
    ("transformer.decoder.layers.#.self_attn.", "transformer.decoder.#.self_attention."),
    ("transformer.decoder.layers.#.norm2.", "transformer.decoder.#.self_norm."),
    ("transformer.decoder.layers.#.norm3.", "transformer.decoder.#.ffn_norm."),
    ("transformer.decoder.layers.#.linear", "transformer.decoder.#.ffn.linear"),
]
_HEADS = ("class_embed", "bbox_embed")
_BOTH = ("weight", "bias")
_ATTENTION = [
    f"{part}.{kind}"
    for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for kind in _BOTH
]
_FFN = [f"{part}.{kind}" for part in ("ffn.linear1", "ffn.linear2", "ffn_norm") for kind in _BOTH]
_SELF_ATTENTION = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official Deformable DETR weights."""
    return is_deformable(state) and not any(name.startswith("vector_embed.") for name in state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our Deformable DETR weights."""
    return is_ours(state) and not any(name.startswith("vector_embed.") for name in state)


def is_deformable(state: Mapping[str, Tensor]) -> bool:
    """Whether there is a deformable transformer of the official layout in it, as SOLQ's too."""
    return "transformer.encoder.layers.0.self_attn.sampling_offsets.weight" in state


def is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether there is a deformable transformer of ours in it, as SOLQ's too."""
    return "transformer.encoder.0.attention.sampling_offsets.weight" in state


def official_name(name: str) -> str:
    """Our name of a parameter to the official one, the first of those that repeat it."""
    return _rename(name, [(ours, official) for official, ours in _NAMES])


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names, each tensor once.

    Args:
        state: Weights by official name; counters of parameters and operations among them are left out.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Missing or unknown keys, or repeated tensors that differ.
    """
    ours = strip(state)
    check_keys(ours, our_names(ours), "the official Deformable DETR layout (names given are ours)")
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
    check_keys(state, our_names(state), "our Deformable DETR layout")
    return repeat(state)


def strip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names without repetitions; keys are not checked.

    Raises:
        LayoutError: Repeated tensors that differ.
    """
    ignored = ("total_params", "total_ops", "num_batches_tracked")
    bare = {name: value for name, value in state.items() if not name.endswith(ignored)}
    inside = [name for name in bare if name.startswith(tuple(f"transformer.decoder.{head}." for head in _HEADS))]
    for name in inside:
        check_equal(bare, name, name.removeprefix("transformer.decoder."))
    ours = {_rename(name, _NAMES): value for name, value in bare.items() if name not in inside}
    layers = count(ours, "transformer.decoder")
    for head in _HEADS:
        if "proposals.token_proj.weight" in ours:
            for name in [name for name in ours if name.startswith(f"{head}.{layers}.")]:
                ours[name.replace(f"{head}.{layers}.", f"proposals.{head}.")] = ours.pop(name)
        if not inside:
            # Without refinement there is one head, and it stands here once a layer.
            merge(ours, [f"{head}.{layer}." for layer in range(layers)], f"{head}.0.")
    return ours


def repeat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to official ones with all repetitions; keys are not checked."""
    layers = count(state, "transformer.decoder")
    shared = count(state, "class_embed") == 1 < layers
    two_stage = "proposals.token_proj.weight" in state
    official = {}
    for name, value in state.items():
        head = name.removeprefix("proposals.").split(".")[0]
        if head not in _HEADS:
            official[official_name(name)] = value
            continue
        rest = name.removeprefix("proposals.").removeprefix(f"{head}.")
        if name.startswith("proposals."):
            copies = [f"{head}.{layers}.{rest}"]
        elif shared:
            copies = [f"{head}.{layer}.{rest.removeprefix('0.')}" for layer in range(layers)]
        else:
            copies = [name]
        if not shared and (head == "bbox_embed" or two_stage):
            copies += [f"transformer.decoder.{copy}" for copy in copies]
        official |= dict.fromkeys(copies, value)
    return official


def merge(state: dict[str, Tensor], prefixes: Iterable[str], into: str) -> None:
    """Keep one of the equal modules under some prefixes, in place.

    Raises:
        LayoutError: They differ.
    """
    for prefix in prefixes:
        for name in [name for name in state if name.startswith(prefix)]:
            kept = into + name.removeprefix(prefix)
            state.setdefault(kept, state[name])
            if name != kept:
                check_equal(state, name, kept)
                del state[name]


def check_equal(state: Mapping[str, Tensor], name: str, other: str) -> None:
    """Refuse a repeated tensor that is not the one it repeats.

    Raises:
        LayoutError: Naming both.
    """
    if other not in state or not torch.equal(state[name], state[other]):
        raise LayoutError(f"{name} repeats {other} in the official layout, but here they differ")


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the largest number that follows a prefix."""
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def our_names(state: Mapping[str, Tensor]) -> set[str]:
    """Our names of everything in these weights' network, at its depths; the backbone's are those that are there.

    Raises:
        LayoutError: No backbone.
    """
    names = {name for name in state if name.startswith("backbone.body.")} | {"transformer.level_embed"}
    if len(names) == 1:
        raise LayoutError(f"no backbone among the keys ({some(state)})")

    def add(prefix: str, parts: Iterable[str]) -> None:
        names.update(f"{prefix}.{part}" for part in parts)

    for level in range(max(1, count(state, "input_proj"))):
        add(f"input_proj.{level}", [f"{part}.{kind}" for part in (0, 1) for kind in _BOTH])
    for layer in range(max(1, count(state, "transformer.encoder"))):
        add(f"transformer.encoder.{layer}.attention", _ATTENTION)
        add(f"transformer.encoder.{layer}", [*_FFN, *(f"attention_norm.{kind}" for kind in _BOTH)])
    for layer in range(max(1, count(state, "transformer.decoder"))):
        add(f"transformer.decoder.{layer}.cross_attention", _ATTENTION)
        add(f"transformer.decoder.{layer}.self_attention", _SELF_ATTENTION)
        norms = [f"{norm}.{kind}" for norm in ("cross_norm", "self_norm") for kind in _BOTH]
        add(f"transformer.decoder.{layer}", [*_FFN, *norms])
    heads = [f"{head}.{i}" for head in _HEADS for i in range(max(1, count(state, "class_embed")))]
    if any(name.startswith("proposals.") for name in state):
        for part in ("token_proj", "token_norm", "query_proj", "query_norm"):
            add(f"proposals.{part}", _BOTH)
        heads += [f"proposals.{head}" for head in _HEADS]
    else:
        names.add("query_embed.weight")
        add("reference_points", _BOTH)
    for head in heads:
        layers = [f"layers.{i}.{kind}" for i in range(3) for kind in _BOTH]
        add(head, layers if "bbox_embed" in head else _BOTH)
    return names


def _rename(name: str, names: list[tuple[str, str]]) -> str:
    for old, new in names:
        if match := re.match(re.escape(old).replace(r"\#", r"(\d+)"), name):
            for number in match.groups():
                new = new.replace("#", number, 1)
            return new + name[match.end() :]
    return name
