"""RetinaNet of detectron2 on ResNet <-> ours.

Names differ, shapes do not: our anchors are in detectron2's order. Its constants (pixel mean and deviation, anchors)
are left out, and its moving average of positive anchors, which it does not save, starts where it does in training.

Reference: layout of facebookresearch/detectron2 at 82a57ce0 (v0.5).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.detectors.retinanet import START
from models.official import LayoutError, check_keys, some

_AVERAGE = "positives"
_CONSTANTS = r"pixel_mean$|pixel_std$|anchor_generator\."
# Official pattern, our replacement, our pattern, official replacement; the first that matches decides.
_NAMES = [
    (
        r"backbone\.bottom_up\.stem\.conv1\.norm\.",
        "backbone.body.bn1.",
        r"backbone\.body\.bn1\.",
        "backbone.bottom_up.stem.conv1.norm.",
    ),
    (
        r"backbone\.bottom_up\.stem\.conv1\.",
        "backbone.body.conv1.",
        r"backbone\.body\.conv1\.",
        "backbone.bottom_up.stem.conv1.",
    ),
    (
        r"backbone\.fpn_lateral(?P<level>\d)\.",
        "neck.fpn.inner_blocks.{level}.0.",
        r"neck\.fpn\.inner_blocks\.(?P<level>\d)\.0\.",
        "backbone.fpn_lateral{level}.",
    ),
    (
        r"backbone\.fpn_output(?P<level>\d)\.",
        "neck.fpn.layer_blocks.{level}.0.",
        r"neck\.fpn\.layer_blocks\.(?P<level>\d)\.0\.",
        "backbone.fpn_output{level}.",
    ),
    (r"backbone\.top_block\.", "neck.fpn.extra_blocks.", r"neck\.fpn\.extra_blocks\.", "backbone.top_block."),
    (
        r"head\.cls_subnet\.(?P<conv>\d+)\.",
        "head.classification_head.conv.{conv}.0.",
        r"head\.classification_head\.conv\.(?P<conv>\d+)\.0\.",
        "head.cls_subnet.{conv}.",
    ),
    (
        r"head\.bbox_subnet\.(?P<conv>\d+)\.",
        "head.regression_head.conv.{conv}.0.",
        r"head\.regression_head\.conv\.(?P<conv>\d+)\.0\.",
        "head.bbox_subnet.{conv}.",
    ),
    (
        r"head\.cls_score\.",
        "head.classification_head.cls_logits.",
        r"head\.classification_head\.cls_logits\.",
        "head.cls_score.",
    ),
    (r"head\.bbox_pred\.", "head.regression_head.bbox_reg.", r"head\.regression_head\.bbox_reg\.", "head.bbox_pred."),
]
_OFFICIAL_BLOCK = r"backbone\.bottom_up\.res(\d)\.(\d+)\.(conv\d|shortcut)\.(norm\.)?"
_OUR_BLOCK = r"backbone\.body\.layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\."


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like a RetinaNet of detectron2."""
    return any(name.startswith("head.cls_subnet.") for name in state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like our RetinaNet with detectron2's convention on a ResNet."""
    return _AVERAGE in state and any(name.startswith("backbone.body.layer1.") for name in state)


def our_name(name: str) -> str:
    """Official name of a parameter to ours; an unknown one stays as it is."""
    if match := re.match(_OFFICIAL_BLOCK, name):
        stage, block, layer, norm = match.groups()
        if layer == "shortcut":
            inner = f"downsample.{1 if norm else 0}"
        else:
            inner = layer.replace("conv", "bn") if norm else layer
        return f"backbone.body.layer{int(stage) - 1}.{block}.{inner}.{name[match.end() :]}"
    for official, ours, _, _ in _NAMES:
        if match := re.match(official, name):
            # Levels start at 3; convolutions alternate with activations.
            numbers = {key: int(n) - 3 if key == "level" else int(n) // 2 for key, n in match.groupdict().items()}
            return ours.format(**numbers) + name[match.end() :]
    return name


def official_name(name: str) -> str:
    """Our name of a parameter to the official one; an unknown one stays as it is."""
    if match := re.match(_OUR_BLOCK, name):
        stage, block, kind, number = match.groups()
        if kind == "downsample.":
            inner = "shortcut.norm" if number == "1" else "shortcut"
        else:
            inner = f"conv{number}.norm" if kind == "bn" else f"conv{number}"
        return f"backbone.bottom_up.res{int(stage) + 1}.{block}.{inner}.{name[match.end() :]}"
    for _, _, ours, official in _NAMES:
        if match := re.match(ours, name):
            numbers = {key: int(n) + 3 if key == "level" else int(n) * 2 for key, n in match.groupdict().items()}
            return official.format(**numbers) + name[match.end() :]
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
    weights = {name: value for name, value in state.items() if not re.match(_CONSTANTS, name)}
    names = {name: our_name(name) for name in weights}
    if unknown := sorted(name for name, ours in names.items() if ours == name):
        raise LayoutError(f"keys do not fit detectron2's RetinaNet on ResNet: unknown {some(unknown)}")
    return {names[name]: value for name, value in weights.items()} | {_AVERAGE: torch.tensor(START)}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to the official layout, without its constants; the inverse of `to_ours`.

    Args:
        state: Weights by our name.

    Returns:
        Weights by official name.

    Raises:
        LayoutError: Keys that our layout does not have.
    """
    names = {name: official_name(name) for name in state if name != _AVERAGE}
    known = {name for name, official in names.items() if official != name} | {_AVERAGE}
    check_keys(state, known, "our RetinaNet on ResNet")
    return {official: state[name] for name, official in names.items()}
