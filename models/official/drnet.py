"""Official DRNet checkpoints (MindSpore names) <-> ours.

Three layouts: the classifier, the predictor, and both in one file under `classifier.` and `predictor.`, which is the
whole network. Ours has a temperature and the counters of PyTorch's batch norms besides, which the official one lacks.

Reference: "Dynamic Resolution Network", arXiv 2106.02898; layout of mindspore-ai/models at eab643f5,
research/cv/DRNet.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.official import LayoutError, check_keys

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_COUNTER = "num_batches_tracked"
_PARTS = ("classifier.", "predictor.")
_TEMPERATURE = "selection.temperature"


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official DRNet weights."""
    return any(re.search(r"\bend_point\.weight$", name) for name in state) and any(
        name.endswith("bn1.moving_mean") or name.endswith("bn1.bn_0.moving_mean") for name in state
    )


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our classifier, alone or with its predictor."""
    return any(re.search(r"\bbn1\.sets\.0\.running_mean$", name) for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name, of the classifier, of the predictor or of both.

    Returns:
        Weights by our name, of the same.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    check_keys(state, _official_names(state), "the official DRNet layout")
    ours = {}
    for name, value in state.items():
        new = our_name(name)
        ours[new] = value
        if new.endswith(".running_mean"):
            ours[new.removesuffix("running_mean") + _COUNTER] = torch.tensor(0)
    if _is_whole(state):
        ours[_TEMPERATURE] = torch.tensor(1.0)
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights to the official names; the inverse of `to_ours`.

    Raises:
        LayoutError: Missing or unknown keys: another host than a ResNet of bottlenecks, or another predictor than ours.
    """
    kept = {name: value for name, value in state.items() if name != _TEMPERATURE and not name.endswith(_COUNTER)}
    official = {official_name(name): value for name, value in kept.items()}
    check_keys(official, _official_names(official), "our DRNet layout (names given are the official ones)")
    return official


def our_name(name: str) -> str:
    """Official name of a parameter to ours; an unknown one stays as it is."""
    name = re.sub(r"\bbn_(\d+)\.", r"sets.\1.", name)
    name = re.sub(r"\bend_point\.", "fc.", name).replace("down_sample_layer.", "downsample.")
    return re.sub(rf"\.({'|'.join(_NORM)})$", lambda match: f".{_NORM[match[1]]}", name)


def official_name(name: str) -> str:
    """Our name of a parameter to the official one; an unknown one stays as it is."""
    if re.search(r"(\bbn\d|downsample\.1)(\.sets\.\d+)?\.\w+$", name):
        stem, leaf = name.rsplit(".", 1)
        name = f"{stem}.{ {ours: theirs for theirs, ours in _NORM.items()}.get(leaf, leaf) }"
    name = re.sub(r"\bsets\.(\d+)\.", r"bn_\1.", name)
    return re.sub(r"\bfc\.", "end_point.", name).replace("downsample.", "down_sample_layer.")


def _is_whole(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(_PARTS) for name in state)


def _official_names(state: Mapping[str, Tensor]) -> set[str]:
    """The complete set of names of the layout that these names belong to, at their depths."""
    if _is_whole(state):
        parts = {part: {n.removeprefix(part) for n in state if n.startswith(part)} for part in _PARTS}
        return {part + name for part, names in parts.items() for name in _names_of_part(names, part)}
    return _names_of_part(set(state), "")


def _names_of_part(names: set[str], part: str) -> set[str]:
    sets = {int(match[1]) for name in names if (match := re.search(r"\.bn_(\d+)\.", name))}
    if part == "classifier." and not sets:
        raise LayoutError("keys do not fit the official DRNet layout: the classifier has no sets of norms (bn_0 ...)")
    convs = 3 if sets else 2
    prefixes = [f"bn_{j}." for j in range(1 + max(sets))] if sets else [""]
    kernels, norms = {"conv1"}, {"bn1"}
    for stage in range(1, 5):
        blocks = [int(match[1]) for name in names if (match := re.match(rf"layer{stage}\.(\d+)\.", name))]
        for block in range(1 + max(blocks, default=0)):
            start = f"layer{stage}.{block}."
            kernels |= {f"{start}conv{i + 1}" for i in range(convs)}
            norms |= {f"{start}bn{i + 1}" for i in range(convs)}
        # A stage that changes neither width nor size has no convolution on its shortcut.
        if any(name.startswith(f"layer{stage}.0.down_sample_layer.") for name in names):
            kernels.add(f"layer{stage}.0.down_sample_layer.0")
            norms.add(f"layer{stage}.0.down_sample_layer.1")
    return (
        {f"{kernel}.weight" for kernel in kernels}
        | {f"{norm}.{prefix}{leaf}" for norm in norms for prefix in prefixes for leaf in _NORM}
        | {"end_point.weight", "end_point.bias"}
    )
