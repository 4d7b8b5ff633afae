"""Official DETR checkpoints <-> our names, with masks (`DETRsegm`) or without.

Names differ a little, shapes do not. A checkpoint of masks holds a whole detector under `detr.`, here `detector.`.

Reference: "End-to-End Object Detection with Transformers", arXiv 2005.12872; layout of
facebookresearch/detr at 29901c5.
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from models.official import LayoutError, check_keys, some

Names = list[tuple[str, str]]

# Official name and ours; `#` is a number. The first row that matches decides.
NAMES: Names = [
    ("backbone.0.body.", "backbone.body."),
    ("backbone.1.", "learned_position."),
]
_SEGMENTATION: Names = [
    *((f"detr.{official}", f"detector.{ours}") for official, ours in NAMES),
    ("detr.", "detector."),
    ("bbox_attention.", "mask_attention."),
    ("mask_head.out_lay.", "mask_head.last."),
    *((f"mask_head.lay{i}.", f"mask_head.convs.{i - 1}.") for i in range(1, 6)),
    *((f"mask_head.gn{i}.", f"mask_head.norms.{i - 1}.") for i in range(1, 6)),
    *((f"mask_head.adapter{i}.", f"mask_head.adapters.{i - 1}.") for i in range(1, 4)),
]
_DECODER = "transformer.decoder.layers.0.multihead_attn.in_proj_weight"


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official DETR weights, with masks or without."""
    return any(
        prefix + _DECODER in state and prefix + "transformer.decoder.layers.0.point2.weight" not in state
        for prefix in ("", "detr.", "module.", "module.detr.")
    ) and any("backbone.0.body." in name for name in state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our DETR weights, with masks or without."""
    return any(
        prefix + _DECODER in state
        and prefix + "prior.offsets.0.weight" not in state
        and any(name.startswith(f"{prefix}backbone.body.") for name in state)
        for prefix in ("", "detector.")
    )


def our_name(name: str) -> str:
    """Official name of a parameter to ours; an unknown one stays as it is."""
    return rename(name, _SEGMENTATION + NAMES)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name, with or without `module.`; counters of a profiler in it are left out.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    bare = weights_of(state)
    ours = {our_name(name): value for name, value in bare.items()}
    check_keys(ours, _our_names(ours), "the official DETR layout (names given are ours)")
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout, without `module.`; the inverse of `to_ours`.

    Args:
        state: Weights by our name.

    Returns:
        Weights by official name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    check_keys(state, _our_names(state), "our DETR layout")
    return {rename(name, reverse(_SEGMENTATION + NAMES)): value for name, value in state.items()}


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights without the `module.` of data parallelism and without the counters that a profiler left.

    Raises:
        LayoutError: Names of ours among them.
    """
    bare = {
        name.removeprefix("module."): value
        for name, value in state.items()
        if not name.endswith(("total_params", "total_ops"))
    }
    if ours := [name for name in bare if name.startswith(("backbone.body.", "detector."))]:
        raise LayoutError(f"keys do not fit the official layout: unknown {some(ours)}")
    return bare


def rename(name: str, names: Names) -> str:
    """A name with its beginning exchanged by the first row that fits; one that no row fits stays as it is."""
    for old, new in names:
        if match := re.match(re.escape(old).replace(r"\#", r"(\d+)"), name):
            for number in match.groups():
                new = new.replace("#", number, 1)
            return new + name[match.end() :]
    return name


def reverse(names: Names) -> Names:
    """The same rows from ours to official."""
    return [(ours, official) for official, ours in names]


def depth(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many layers `prefix.0.`, `prefix.1.` ... weights have, at least one."""
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def detector_names(state: Mapping[str, Tensor], prefix: str = "") -> Iterator[str]:
    """All names of our DETR of the depth of these weights, of its backbone those that are there."""

    def both(*modules: str) -> Iterator[str]:
        for module in modules:
            yield f"{prefix}{module}.weight"
            yield f"{prefix}{module}.bias"

    def attention(module: str) -> Iterator[str]:
        yield f"{prefix}{module}.in_proj_weight"
        yield f"{prefix}{module}.in_proj_bias"
        yield from both(f"{module}.out_proj")

    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "multihead_attn"])):
        for i in range(depth(state, f"{prefix}transformer.{side}.layers")):
            layer = f"transformer.{side}.layers.{i}"
            for name in attentions:
                yield from attention(f"{layer}.{name}")
            yield from both(f"{layer}.linear1", f"{layer}.linear2")
            yield from both(*(f"{layer}.norm{j}" for j in range(1, len(attentions) + 2)))
    # Pre-norm only.
    if any(name.startswith(f"{prefix}transformer.encoder.norm.") for name in state):
        yield from both("transformer.encoder.norm")
    if any(name.startswith(f"{prefix}learned_position.") for name in state):
        yield from (f"{prefix}learned_position.{axis}_embed.weight" for axis in ("row", "col"))
    yield from both("input_proj", "transformer.decoder.norm", "class_embed")
    yield f"{prefix}query_embed.weight"
    yield from both(*(f"bbox_embed.layers.{i}" for i in range(3)))
    yield from (name for name in state if name.startswith(f"{prefix}backbone.body."))


def _our_names(state: Mapping[str, Tensor]) -> set[str]:
    if not any(name.startswith("detector.") for name in state):
        return set(detector_names(state))
    modules = ["mask_attention.q_linear", "mask_attention.k_linear", "mask_head.last"]
    modules += [f"mask_head.{part}.{i}" for part in ("convs", "norms") for i in range(5)]
    modules += [f"mask_head.adapters.{i}" for i in range(3)]
    heads = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    return heads | set(detector_names(state, "detector."))
