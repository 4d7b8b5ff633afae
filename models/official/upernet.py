"""Official checkpoints of UperNet with ConvNeXt <-> our names.

The backbone's layout is that of `models.official.convnext`, behind `backbone.`; of the heads only names differ.

Reference: "A ConvNet for the 2020s", arXiv 2201.03545; layout of facebookresearch/ConvNeXt at 048efcea,
`semantic_segmentation`, on MMSegmentation's heads.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from models.official import LayoutError, check_keys, convnext
from models.segmenters.upernet import NUM_LEVELS

_BACKBONE = "backbone."
# Convolutions with their norms: official name and ours.
_CONVS = {
    "decode_head.bottleneck": "head.context",
    **{f"decode_head.lateral_convs.{i}": f"head.laterals.{i}" for i in range(NUM_LEVELS - 1)},
    **{f"decode_head.fpn_convs.{i}": f"head.smooths.{i}" for i in range(NUM_LEVELS - 1)},
    "decode_head.fpn_bottleneck": "head.fusion",
    "auxiliary_head.convs.0": "auxiliary.conv",
}
_POOL = ("decode_head.psp_modules.{}.1", "head.pools.{}.1")
_CLASSIFIERS = {"decode_head.conv_seg": "head.classifier", "auxiliary_head.conv_seg": "auxiliary.classifier"}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_OUTPUT_NORMS = {f"{_BACKBONE}norm{i}.{kind}" for i in range(NUM_LEVELS) for kind in ("weight", "bias")}


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like official weights of UperNet with ConvNeXt."""
    return _has(state, r"decode_head\.psp_modules\.\d+\.1\.conv\.") and _has(
        state, r"backbone\.stages\.\d+\.\d+\.dwconv\."
    )


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our UperNet with ConvNeXt."""
    return _has(state, r"head\.pools\.\d+\.1\.0\.") and _has(state, r"backbone\.stages\.\d+\.blocks\.\d+\.conv_dw\.")


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name.

    Returns:
        Weights by our name; pointwise weights of the backbone are 2-D.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    names = _head_names(_number_of_pools(state, 0))
    backbone, heads = _parts(state, set(names), "the official UperNet layout")
    ours = {_BACKBONE + name: value for name, value in convnext.to_ours(backbone).items()}
    return ours | {names[name]: value for name, value in heads.items()}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout; the inverse of `to_ours`.

    Args:
        state: Weights by our name.

    Returns:
        Weights by official name; pointwise weights of the backbone are 2-D.

    Raises:
        LayoutError: Missing or unknown keys.
    """
    names = {ours: official for official, ours in _head_names(_number_of_pools(state, 1)).items()}
    backbone, heads = _parts(state, set(names), "our UperNet layout")
    official = {_BACKBONE + name: value for name, value in convnext.to_official(backbone).items()}
    return official | {names[name]: value for name, value in heads.items()}


def _has(state: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.match(pattern, name) for name in state)


def _number_of_pools(state: Mapping[str, Tensor], side: int) -> int:
    pattern = re.escape(_POOL[side]).replace(r"\{\}", r"(\d+)")
    found = (re.match(pattern, name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def _head_names(pools: int) -> dict[str, str]:
    """Every official name of the heads, and ours."""
    names = {}
    for official, ours in (_CONVS | {_POOL[0].format(i): _POOL[1].format(i) for i in range(pools)}).items():
        names[f"{official}.conv.weight"] = f"{ours}.0.weight"
        names |= {f"{official}.bn.{kind}": f"{ours}.1.{kind}" for kind in _NORM}
    for official, ours in _CLASSIFIERS.items():
        names |= {f"{official}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    return names


def _parts(state: Mapping[str, Tensor], head_names: set[str], what: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone, without its prefix, and the heads."""
    heads = {name: value for name, value in state.items() if not name.startswith(_BACKBONE)}
    check_keys(heads, head_names, what)
    if missing := sorted(_OUTPUT_NORMS - state.keys()):
        raise LayoutError(f"keys do not fit {what}: missing {', '.join(missing)}")
    return {name.removeprefix(_BACKBONE): value for name, value in state.items() if name not in heads}, heads
