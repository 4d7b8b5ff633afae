"""Where the code bases behind published detectors differ: one record each, so that a checkpoint meets its own rules.

Given the same weights, another convention of anchors, pooling or clamping silently costs average precision; given the
same data, another normaliser or matching rule is another training. References: mmdetection 2.3.0, detectron2 0.5 (FCOS:
AdelaiDet) and torchvision 0.29; the papers leave these choices open.
"""

import math
from dataclasses import dataclass
from typing import Literal

from models.mistakes import Mistake

# Deltas beyond this would blow a box up by more than 1000 / 16.
LARGEST_LOG_SCALE = math.log(1000 / 16)


@dataclass(frozen=True)
class Convention:
    """The choices of one code base.

    Args:
        rounded_anchors: Whether the corners of an anchor around the origin are rounded to pixels, and sizes that are
            not whole are cut to whole ones.
        size_major: Whether the anchors of a cell are ordered by size, then ratio; else by ratio, then size.
        clamps_shrinking: Whether the logarithm of a predicted scale is clamped from below too.
        aligned: Whether RoIAlign shifts by half a pixel and takes as many samples as fit; else 2 x 2, unshifted.
        proposals_before: Proposals per level before suppression, in training and in evaluation.
        proposals_after: Proposals per image after suppression, in training and in evaluation.
        least_proposal: Proposals narrower or lower than this are dropped, in pixels.
        least_detection: Detections of two-stage detectors narrower or lower than this are dropped, in pixels.
        least_dense_detection: Detections of dense detectors narrower or lower than this are dropped, in pixels.
        rpn_beta: Width of the quadratic part of the smooth L1 loss of proposals; 0 for L1.
        roi_beta: Width of the quadratic part of the smooth L1 loss of regions of interest; 0 for L1.
        rpn_counts_drawn: Whether the loss of proposals is divided by the anchors drawn, or by those asked for.
        takes_every_best: Whether an object takes the anchors that overlap it most even from an object that they
            overlap more, if that overlap is at least the lower threshold; else such an anchor goes to the latter.
        matches_given_boxes: Whether the objects' own boxes, added to the proposals, are matched by overlap like them;
            else each stands for its object.
        mask_low_quality: Whether in Mask R-CNN an object also takes the proposals that overlap it most.
        ignores_padding: Whether anchors centred on the padding of an image are left out of the loss.
        hard_masks: Whether the target of a mask is thresholded at one half.
        retinanet_divisor: What RetinaNet's losses are divided by: the positive anchors of the `batch`, of each `image`
            (the mean over images follows), or a moving `average` of those of the batch.
        p6_on_backbone: Whether RetinaNet's sixth level comes from the backbone's last map, or the pyramid's.
        clips_before_suppression: Whether dense detections are clipped to the image before suppression, or after.
        adelaidet_fcos: Whether FCOS has points at the centre of cells, a learned scale per level, boxes weighted by
            centre-ness, and counts taken over all processes.
    """

    rounded_anchors: bool
    size_major: bool
    clamps_shrinking: bool
    aligned: bool
    proposals_before: tuple[int, int]
    proposals_after: tuple[int, int]
    least_proposal: float
    least_detection: float
    least_dense_detection: float
    rpn_beta: float
    roi_beta: float
    rpn_counts_drawn: bool
    takes_every_best: bool
    matches_given_boxes: bool
    mask_low_quality: bool
    ignores_padding: bool
    hard_masks: bool
    retinanet_divisor: Literal["batch", "image", "average"]
    p6_on_backbone: bool
    clips_before_suppression: bool
    adelaidet_fcos: bool


# "Not empty" as a least side.
_NOT_EMPTY = 1e-12

CONVENTIONS: dict[str, Convention] = {
    "mmdet": Convention(
        rounded_anchors=False,
        size_major=False,
        clamps_shrinking=True,
        aligned=True,
        proposals_before=(2000, 1000),
        proposals_after=(1000, 1000),
        least_proposal=0.0,
        least_detection=0.0,
        least_dense_detection=0.0,
        rpn_beta=0.0,
        roi_beta=0.0,
        rpn_counts_drawn=True,
        takes_every_best=True,
        matches_given_boxes=False,
        mask_low_quality=True,
        ignores_padding=True,
        hard_masks=True,
        retinanet_divisor="batch",
        p6_on_backbone=True,
        clips_before_suppression=True,
        adelaidet_fcos=True,
    ),
    "detectron2": Convention(
        rounded_anchors=False,
        size_major=True,
        clamps_shrinking=False,
        aligned=True,
        proposals_before=(2000, 1000),
        proposals_after=(1000, 1000),
        least_proposal=_NOT_EMPTY,
        least_detection=_NOT_EMPTY,
        least_dense_detection=_NOT_EMPTY,
        rpn_beta=0.0,
        roi_beta=0.0,
        rpn_counts_drawn=False,
        takes_every_best=False,
        matches_given_boxes=True,
        mask_low_quality=False,
        ignores_padding=False,
        hard_masks=True,
        retinanet_divisor="average",
        p6_on_backbone=True,
        clips_before_suppression=False,
        adelaidet_fcos=True,
    ),
    "torchvision": Convention(
        rounded_anchors=True,
        size_major=False,
        clamps_shrinking=False,
        aligned=False,
        proposals_before=(2000, 1000),
        proposals_after=(2000, 1000),
        least_proposal=1e-3,
        least_detection=1e-2,
        least_dense_detection=0.0,
        rpn_beta=1 / 9,
        roi_beta=1 / 9,
        rpn_counts_drawn=True,
        takes_every_best=False,
        matches_given_boxes=True,
        mask_low_quality=False,
        ignores_padding=False,
        hard_masks=False,
        retinanet_divisor="image",
        p6_on_backbone=False,
        clips_before_suppression=True,
        adelaidet_fcos=False,
    ),
}


def convention(name: str | Convention) -> Convention:
    """The choices of a code base; those that are given as a record stay as they are.

    Raises:
        Mistake: Unknown name.
    """
    if isinstance(name, Convention):
        return name
    if name not in CONVENTIONS:
        raise Mistake(f"unknown convention {name!r}; choose one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
