"""torchvision's Faster R-CNN, Mask R-CNN, RetinaNet and FCOS on ResNet <-> ours.

torchvision predicts boxes and masks of the background too, which nothing reads; ours does not, so those rows are left
out, and zero on the way back. Names of released weights are older than torchvision's modules; both are understood.

Reference: torchvision 0.29, `torchvision.models.detection`.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.official import LayoutError, check_keys, some

# Names of released weights and today's, both torchvision's.
_RENAMED = [
    (r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)", r"backbone.fpn.\1_blocks.\2.0.\3"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
]
_OURS = [("neck.fpn.", "backbone.fpn."), ("roi_heads.0.", "roi_heads.")]
_SAME = ("backbone.body.", "rpn.head.", "head.classification_head.", "head.regression_head.")
# Rows of the background.
_UNUSED_ROWS = {"box_predictor.bbox_pred": 4, "mask_predictor.mask_fcn_logits": 1}


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like a detector of torchvision."""
    return any(name.startswith("backbone.fpn.inner_blocks.") for name in state)


def matches_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether key names look like one of our detectors that torchvision has too."""
    has_heads = any(name.startswith(("roi_heads.0.", "head.classification_head.")) for name in state)
    only_ours = "positives" in state or any(name.startswith("roi_heads.1.") for name in state)
    return has_heads and "backbone.body.conv1.weight" in state and not only_ours


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's weights to our names.

    Args:
        state: Weights by torchvision's name, old or new.

    Returns:
        Weights by our name.

    Raises:
        LayoutError: Keys that this layout does not have.
    """
    numbered = "head.regression_head.bbox_ctrness.weight" not in state
    ours = {}
    for name, value in state.items():
        # A counter of the batch norms, which are frozen here.
        if name.endswith(".num_batches_tracked"):
            continue
        current = _current(name, numbered)
        for our_start, start in _OURS:
            if current.startswith(start):
                current = our_start + current.removeprefix(start)
                break
        rows = _unused_rows(current)
        ours[current] = value[rows:] if rows else value
    known = (*_SAME, *(start for start, _ in _OURS))
    if unknown := sorted(name for name in ours if not name.startswith(known)):
        raise LayoutError(f"keys do not fit torchvision's detectors on ResNet: unknown {some(unknown)}")
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in our names to torchvision's of today; the inverse of `to_ours` but for rows that nothing reads.

    Args:
        state: Weights by our name.

    Returns:
        Weights by torchvision's name.

    Raises:
        LayoutError: Keys that our layout does not have.
    """
    starts = dict(_OURS) | {start: start for start in _SAME}
    official = {}
    known = set()
    for name, value in state.items():
        start = next((start for start in starts if name.startswith(start)), None)
        if start is not None:
            known.add(name)
            if rows := _unused_rows(name):
                value = torch.cat([value.new_zeros(rows, *value.shape[1:]), value])
            official[starts[start] + name.removeprefix(start)] = value
    check_keys(state, known, "our detectors on ResNet")
    return official


def _current(name: str, numbered: bool) -> str:
    """Today's name; the towers of RetinaNet, unlike FCOS's, have been numbered anew."""
    for old, new in _RENAMED:
        if match := re.fullmatch(old, name):
            return match.expand(new)
    if numbered and (match := re.fullmatch(r"(head\.\w+\.conv)\.(\d)\.(weight|bias)", name)):
        return f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"
    if match := re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", name):
        return f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}"
    return name


def _unused_rows(name: str) -> int:
    return next((rows for part, rows in _UNUSED_ROWS.items() if part in name), 0)
