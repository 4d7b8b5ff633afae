"""Official ShuffleNetV2-DRConv checkpoints <-> `models.backbones.shufflenet_drconv`.

Reference: "Dynamic Region-Aware Convolution", arXiv 2003.12243; layout of megvii-research/DRConv at 063a8e5e. The names
of the paper's variant of the layer are those of shallowtoil/DRConv-PyTorch at dafce873.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from models.official import check_keys

_NETWORK = {"conv_first.": "stem.", "classifier.": "head.fc."}
_BLOCK = {
    "masknet.": "guide.",
    "conva_right.": "expand.",
    "convb_right.": "depthwise.",
    "convc_right.": "project.",
    "conva_left.": "shortcut.0.",
    "convb_left.": "shortcut.1.",
}
_DYNAMIC = ("conva_right.", "convc_right.")
_LAYER = {
    "routing_fc.": "generator.routing.",
    "weight": "generator.weight",
    "conv_kernel.1.": "generator.hidden.",
    "conv_kernel.3.": "generator.banks.",
    "conv_guide.": "guide.",
}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official ShuffleNetV2-DRConv weights."""
    return any(re.fullmatch(r"stage\d+_block\d+\.masknet\.weight", name) for name in state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like weights of our ShuffleNetV2-DRConv."""
    return any(re.match(r"stages\.\d+\.\d+\.expand\.conv\.generator\.", name) for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    check_keys(state, _official_names(state), "the official ShuffleNetV2-DRConv layout")
    return {our_name(name): value for name, value in state.items()}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout; the inverse of `to_ours`.

    Args:
        state: Weights by our name.

    Returns:
        Weights by official name.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    official = {official_name(name): value for name, value in state.items()}
    check_keys(
        official, _official_names(official), "our ShuffleNetV2-DRConv layout (names given are the official ones)"
    )
    return official


def our_name(name: str) -> str:
    """Official name of a parameter to ours; an unknown one stays as it is."""
    if match := re.match(r"stage(\d+)_block(\d+)\.", name):
        block = f"stages.{int(match[1]) - 1}.{int(match[2]) - 1}."
        return block + our_block_name(name.removeprefix(match[0]))
    return _swap(name, _NETWORK)


def official_name(name: str) -> str:
    """Our name of a parameter to the official one; an unknown one stays as it is."""
    if match := re.match(r"stages\.(\d+)\.(\d+)\.", name):
        block = f"stage{int(match[1]) + 1}_block{int(match[2]) + 1}."
        return block + official_block_name(name.removeprefix(match[0]))
    return _swap(name, _inverse(_NETWORK))


def our_block_name(name: str) -> str:
    """As `our_name`, for a name within a block."""
    for part in _DYNAMIC:
        if name.startswith(f"{part}conv."):
            return f"{_BLOCK[part]}conv.{our_layer_name(name.removeprefix(f'{part}conv.'))}"
    return _swap(name, _BLOCK)


def official_block_name(name: str) -> str:
    """As `official_name`, for a name within a block."""
    for part in _DYNAMIC:
        if name.startswith(f"{_BLOCK[part]}conv."):
            return f"{part}conv.{official_layer_name(name.removeprefix(f'{_BLOCK[part]}conv.'))}"
    return _swap(name, _inverse(_BLOCK))


def our_layer_name(name: str) -> str:
    """As `our_name`, for a name within a DRConv of either variant."""
    return _swap(name, _LAYER)


def official_layer_name(name: str) -> str:
    """As `official_name`, for a name within a DRConv of either variant."""
    return _swap(name, _inverse(_LAYER))


def _swap(name: str, beginnings: Mapping[str, str]) -> str:
    for old, new in beginnings.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}


def _official_names(state: Mapping[str, Tensor]) -> set[str]:
    """The complete set of names of the layout, at the depths of these names."""
    depths: dict[int, int] = {}
    for name in state:
        if match := re.match(r"stage(\d+)_block(\d+)\.", name):
            stage, block = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), block)
    names = {f"{layer}.conv.bias" for layer in ("conv_first", "conv_last")} | {"classifier.weight", "classifier.bias"}
    layers = ["conv_first", "conv_last"]
    for stage in range(1, 1 + max(depths, default=0)):
        for block in range(1, 1 + depths.get(stage, 1)):
            start = f"stage{stage}_block{block}."
            parts = [part for part in _BLOCK if part.endswith("_right.") or (block == 1 and part.endswith("_left."))]
            layers += [start + part.removesuffix(".") for part in parts]
            names |= {f"{start}{part}conv.routing_fc.{kind}" for part in _DYNAMIC for kind in ("weight", "bias")}
            names.add(f"{start}masknet.weight")
    return names | {f"{layer}.{kind}" for layer in layers for kind in ("conv.weight", *(f"bn.{n}" for n in _NORM))}
