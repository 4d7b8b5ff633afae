"""Which object each anchor or proposal answers for, and which of them a loss sees.

Reference: "Faster R-CNN", arXiv 1506.01497, section 3.1.2.
"""

from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND, IGNORED = -1, -2
LowQuality = Literal["no", "first_choice", "every_best"]


def match(
    boxes: Tensor,
    objects: Tensor,
    positive: float,
    negative: float,
    low_quality: LowQuality = "no",
) -> Tensor:
    """The object that each box answers for, by overlap (IoU).

    Args:
        boxes: Anchors or proposals [N, 4], x1 y1 x2 y2 in pixels.
        objects: Boxes of the objects [M, 4], likewise; M may be 0.
        positive: Least overlap with its object.
        negative: Boxes that overlap every object less than this are background; those between are ignored.
        low_quality: What happens to the boxes that overlap an object most, however little. `no`: nothing;
            `first_choice`: they answer for the object that they overlap most; `every_best`: they answer for that very
            object (the last such), provided the overlap is at least `negative`.

    Returns:
        [N], int64: index of an object, or `BACKGROUND` or `IGNORED`.
    """
    if not len(objects) or not len(boxes):
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    overlaps = box_iou(objects.float(), boxes.float())
    largest, first_choice = overlaps.max(0)
    matches = torch.where(largest >= positive, first_choice, IGNORED)
    matches = torch.where(largest < negative, BACKGROUND, matches)
    if low_quality == "no":
        return matches
    best = overlaps.amax(1, keepdim=True)
    # An object that overlaps nothing has no best box.
    is_best = (overlaps == best) & (best > 0)
    if low_quality == "first_choice":
        return torch.where(is_best.any(0), first_choice, matches)
    numbers = torch.arange(1, len(objects) + 1, device=boxes.device)[:, None]
    last = (numbers * (is_best & (best >= negative))).amax(0) - 1
    return torch.where(last >= 0, last, matches)


def sample(matches: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Positive and background boxes drawn at random, with PyTorch's generator of their device.

    Args:
        matches: What `match` returned [N].
        count: How many to draw, at most.
        positive_fraction: How many of them may be positive; background fills up.

    Returns:
        Indices of positive and of background boxes.
    """
    positive = _draw(torch.where(matches >= 0)[0], int(count * positive_fraction))
    background = _draw(torch.where(matches == BACKGROUND)[0], count - len(positive))
    return positive, background


def _draw(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
