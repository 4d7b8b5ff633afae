"""ImageNet checkpoints of HRNet, official or timm's <-> the trunk of our networks.

Dense prediction starts from them. The layers of classification are left out, with a warning.

Reference: "Deep High-Resolution Representation Learning for Visual Recognition", arXiv 1908.07919; layout of
HRNet-Image-Classification, which is timm's.
"""

import re
import warnings
from collections.abc import Mapping

from torch import Tensor

from models.official import LayoutError, check_keys, some
from models.official.hrnet import TRUNK, trunk_names

_TRUNK = "backbone."
# The new branch of the second stage, which only HRNets have.
_SIGN = "transition1.1.0.0.weight"
# What follows the trunk. The final layer of a pose network is not in two parts.
_CLASSIFICATION = re.compile(r"(incre_modules|downsamp_modules|final_layer\.[01]|classifier)\.")
# How networks of other tasks go on.
_OTHER_ENDS = ("exit1.", "last_layer.", "final_layer.weight", "final_layer.bias")


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like an HRNet of ImageNet, or like its trunk."""
    return _SIGN in state and not any(name.startswith(_OTHER_ENDS) for name in state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like the trunk of our networks on HRNet, and nothing else."""
    return _TRUNK + _SIGN in state and all(name.startswith(_TRUNK) for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ImageNet weights to the trunk of our networks.

    Args:
        state: Weights by official name.

    Returns:
        Weights of the trunk, by our name.

    Raises:
        LayoutError: Keys that belong neither to the trunk nor to the classification that follows it, or missing ones.
    """
    trunk = {name: value for name, value in state.items() if TRUNK.match(name)}
    rest = [name for name in state if name not in trunk]
    if strangers := sorted(name for name in rest if not _CLASSIFICATION.match(name)):
        raise LayoutError(f"keys do not fit an ImageNet HRNet: unknown {some(strangers)}")
    check_keys(trunk, trunk_names(trunk), "an ImageNet HRNet")
    if rest:
        parts = ", ".join(sorted({name.split(".")[0] for name in rest}))
        warnings.warn(f"left out: the layers of classification, {parts} ({len(rest)} tensors)", stacklevel=2)
    return {_TRUNK + name: value for name, value in trunk.items()}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trunk of our networks by its official names; the inverse of `to_ours` but for what that left out.

    Args:
        state: Weights of the trunk, by our name.

    Returns:
        Weights by official name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    check_keys(state, trunk_names(state, _TRUNK), "the trunk of our HRNets")
    return {name.removeprefix(_TRUNK): value for name, value in state.items()}
