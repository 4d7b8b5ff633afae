"""Official SMCA checkpoints <-> our names: DETR's, and those of the Gaussian prior.

Reference: "Fast Convergence of DETR with Spatially Modulated Co-Attention", arXiv 2101.07448; layout of
gaopengcuhk/SMCA-DETR at e4df3ab.
"""

from collections.abc import Mapping

from torch import Tensor

from models.official import check_keys
from models.official.detr import NAMES, Names, depth, detector_names, rename, reverse, weights_of

_NAMES: Names = [
    ("transformer.decoder.layers.0.point1.", "prior.centre."),
    ("transformer.decoder.layers.#.norm4.", "prior.norms.#."),
    ("transformer.decoder.layers.#.point2.", "prior.offsets.#."),
    ("transformer.decoder.layers.#.point3.", "prior.scales.#."),
    *NAMES,
]


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official SMCA weights."""
    return any(f"{prefix}transformer.decoder.layers.0.point2.weight" in state for prefix in ("", "module."))


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our SMCA weights."""
    return "prior.offsets.0.weight" in state


def our_name(name: str) -> str:
    """Official name of a parameter to ours; an unknown one stays as it is."""
    return rename(name, _NAMES)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name, with or without `module.`; counters of a profiler in it are left out.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    ours = {our_name(name): value for name, value in weights_of(state).items()}
    check_keys(ours, _our_names(ours), "the official SMCA layout (names given are ours)")
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
    check_keys(state, _our_names(state), "our SMCA layout")
    return {rename(name, reverse(_NAMES)): value for name, value in state.items()}


def _our_names(state: Mapping[str, Tensor]) -> set[str]:
    modules = [f"prior.centre.layers.{i}" for i in range(3)]
    # Fixed scales (type1) have no weights.
    parts = ["norms", "offsets"] + ["scales"] * any(name.startswith("prior.scales.") for name in state)
    layers = depth(state, "transformer.decoder.layers")
    modules += [f"prior.{part}.{i}" for part in parts for i in range(layers)]
    return set(detector_names(state)) | {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
