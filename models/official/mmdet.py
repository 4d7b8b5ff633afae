"""Two-stage detectors of mmdetection on ConvNeXt <-> ours.

Background moves from the last class logit to the first; everything else keeps its shape. Where torchvision's modules
number what has weights together with what has none, so do our names.

Reference: layout of facebookresearch/ConvNeXt at 048efcea, `object_detection`, on mmdetection 2.3.0.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.official import LayoutError, check_keys, some

# Official pattern, our replacement, our pattern, official replacement; the first that matches decides.
_NAMES = [
    (r"backbone\.norm(\d)\.", r"neck.norms.\1.", r"neck\.norms\.(\d)\.", r"backbone.norm\1."),
    (
        r"backbone\.downsample_layers\.0\.(\d)\.",
        r"backbone.body.stem_\1.",
        r"backbone\.body\.stem_(\d)\.",
        r"backbone.downsample_layers.0.\1.",
    ),
    (
        r"backbone\.downsample_layers\.(\d)\.(\d)\.",
        r"backbone.body.stages_\1.downsample.\2.",
        r"backbone\.body\.stages_(\d)\.downsample\.(\d)\.",
        r"backbone.downsample_layers.\1.\2.",
    ),
    (
        r"backbone\.stages\.(\d)\.(\d+)\.",
        r"backbone.body.stages_\1.blocks.\2.",
        r"backbone\.body\.stages_(\d)\.blocks\.(\d+)\.",
        r"backbone.stages.\1.\2.",
    ),
    (
        r"neck\.lateral_convs\.(\d)\.conv\.",
        r"neck.fpn.inner_blocks.\1.0.",
        r"neck\.fpn\.inner_blocks\.(\d)\.0\.",
        r"neck.lateral_convs.\1.conv.",
    ),
    (
        r"neck\.fpn_convs\.(\d)\.conv\.",
        r"neck.fpn.layer_blocks.\1.0.",
        r"neck\.fpn\.layer_blocks\.(\d)\.0\.",
        r"neck.fpn_convs.\1.conv.",
    ),
    (r"rpn_head\.rpn_conv\.", "rpn.head.conv.0.0.", r"rpn\.head\.conv\.0\.0\.", "rpn_head.rpn_conv."),
    (r"rpn_head\.rpn_cls\.", "rpn.head.cls_logits.", r"rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
    (r"rpn_head\.rpn_reg\.", "rpn.head.bbox_pred.", r"rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
]
# The same within a block, and within a stage's heads.
_IN_BLOCK = {"dwconv.": "conv_dw.", "pwconv1.": "mlp.fc1.", "pwconv2.": "mlp.fc2."}
_IN_STAGE = {
    **{f"bbox_head.shared_convs.{i}.conv.": f"box_head.{i}.0." for i in range(4)},
    **{f"bbox_head.shared_convs.{i}.bn.": f"box_head.{i}.1." for i in range(4)},
    "bbox_head.fc_cls.": "box_predictor.cls_score.",
    "bbox_head.fc_reg.": "box_predictor.bbox_pred.",
    **{f"mask_head.convs.{i}.conv.": f"mask_head.{i}.0." for i in range(4)},
    "mask_head.upsample.": "mask_predictor.conv5_mask.",
    "mask_head.conv_logits.": "mask_predictor.mask_fcn_logits.",
}
_TWO_LAYERS = {"bbox_head.shared_fcs.0.": "box_head.fc6.", "bbox_head.shared_fcs.1.": "box_head.fc7."}
# After four convolutions and a flattening.
_ONE_LAYER = {"bbox_head.shared_fcs.0.": "box_head.5."}
_OURS = r"(backbone\.body|neck\.(norms|fpn)|rpn\.head|roi_heads\.\d)\."


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like a two-stage detector of mmdetection."""
    return any(name.startswith("roi_head.bbox_head.") for name in state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our two-stage detectors on ConvNeXt."""
    return any(name.startswith("roi_heads.0.") for name in state) and "backbone.body.stem_0.weight" in state


def our_name(name: str, convolutions: bool) -> str:
    """Official name of a parameter to ours; an unknown one stays as it is.

    Args:
        name: Official name.
        convolutions: Whether the box heads are of four convolutions (`4conv1fc`).
    """
    if match := re.match(r"roi_head\.(bbox_head|mask_head)\.(?:(\d)\.)?(.*)", name):
        head, stage, rest = match.groups()
        inner = _replace(f"{head}.{rest}", _stage_names(convolutions))
        return name if inner is None else f"roi_heads.{stage or 0}.{inner}"
    for official, ours, _, _ in _NAMES:
        if match := re.match(official, name):
            rest = name[match.end() :]
            if ".blocks." in ours:
                rest = _replace(rest, _IN_BLOCK) or rest
            return match.expand(ours) + rest
    return name


def official_name(name: str, convolutions: bool, cascade: bool) -> str:
    """Our name of a parameter to the official one; an unknown one stays as it is.

    Args:
        name: Our name.
        convolutions: See `our_name`.
        cascade: Whether there are several stages, whose names are then numbered.
    """
    if match := re.match(r"roi_heads\.(\d)\.(.*)", name):
        stage, rest = match.groups()
        inner = _replace(rest, {ours: official for official, ours in _stage_names(convolutions).items()})
        if inner is None:
            return name
        head, _, rest = inner.partition(".")
        return f"roi_head.{head}.{stage}.{rest}" if cascade else f"roi_head.{head}.{rest}"
    for _, _, ours, official in _NAMES:
        if match := re.match(ours, name):
            rest = name[match.end() :]
            if official.startswith("backbone.stages"):
                rest = _replace(rest, {ours: official for official, ours in _IN_BLOCK.items()}) or rest
            return match.expand(official) + rest
    return name


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official weights to our names.

    Args:
        state: Weights by official name.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Keys that this layout does not have.
    """
    convolutions = any(".shared_convs." in name for name in state)
    ours = {our_name(name, convolutions): _background(name, value, 1) for name, value in state.items()}
    if unknown := sorted(name for name in ours if not re.match(_OURS, name)):
        raise LayoutError(f"keys do not fit mmdetection's two-stage detectors on ConvNeXt: unknown {some(unknown)}")
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout; the inverse of `to_ours`.

    Args:
        state: Weights by our name.

    Returns:
        Weights by official name.

    Raises:
        LayoutError: Keys that our layout does not have.
    """
    convolutions = "roi_heads.0.box_head.5.weight" in state
    cascade = any(name.startswith("roi_heads.1.") for name in state)
    names = {name: official_name(name, convolutions, cascade) for name in state}
    check_keys(state, {name for name, official in names.items() if official != name}, "our detectors on ConvNeXt")
    return {names[name]: _background(names[name], value, -1) for name, value in state.items()}


def _background(official: str, value: Tensor, shift: int) -> Tensor:
    return torch.roll(value, shift, 0) if ".fc_cls." in official else value


def _stage_names(convolutions: bool) -> dict[str, str]:
    return _IN_STAGE | (_ONE_LAYER if convolutions else _TWO_LAYERS)


def _replace(name: str, prefixes: Mapping[str, str]) -> str | None:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None
