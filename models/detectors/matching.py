"""Bipartite matching of predictions and objects, of all decoder layers and images at once.

Reference: "End-to-End Object Detection with Transformers", ECCV 2020, arXiv 2005.12872, equation 1; with the focal
class cost, "Deformable DETR", ICLR 2021, arXiv 2010.04159.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

Classification = Literal["focal", "softmax"]
CLASSIFICATIONS = ("focal", "softmax")
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


@dataclass(frozen=True)
class MatchCosts:
    """Weights of the terms of a matching cost.

    Args:
        cls: Weight of the class term: -p for softmax, the difference of the two focal terms for sigmoid heads.
        l1: Weight of the L1 distance of (cx, cy, w, h).
        giou: Weight of -GIoU.
    """

    cls: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


class Assignment(NamedTuple):
    """M matches in each of L layers; each layer has as many of an image, since all have as many queries.

    Attributes:
        images: int64 [M], rising.
        queries: int64 [L, M], rising within an image.
        targets: int64 [L, M], positions in the concatenation of the targets of all images.
    """

    images: Tensor
    queries: Tensor
    targets: Tensor


@torch.no_grad()
def match_costs(
    logits: Tensor,
    boxes: Tensor,
    labels: list[Tensor],
    target_boxes: list[Tensor],
    classification: Classification,
    weights: MatchCosts,
) -> Tensor:
    """What it costs to match each query with each object of its image.

    Args:
        logits: [L, B, Q, C].
        boxes: [L, B, Q, 4], (cx, cy, w, h).
        labels: Labels of the objects, int64 [n], one tensor an image.
        target_boxes: Boxes (cx, cy, w, h) of the objects [n, 4], one tensor an image.
        classification: Which class cost.
        weights: What the terms are multiplied by.

    Returns:
        float32 [L, B, Q, N] for N objects in the image that has most; an image's own n come first.
    """
    logits, boxes = logits.float(), boxes.float()
    # Padding is a box with an area, so that its costs are numbers.
    objects = pad_sequence([each.float() for each in target_boxes], batch_first=True, padding_value=0.5)
    classes = pad_sequence(labels, batch_first=True)
    wanted = classes[None, :, None].expand(*logits.shape[:3], -1)
    if classification == "softmax":
        class_cost = -logits.softmax(-1).gather(-1, wanted)
    else:
        p = logits.gather(-1, wanted).sigmoid()
        hit = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * -(p + 1e-8).log()
        miss = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * -(1 - p + 1e-8).log()
        class_cost = hit - miss
    distance = torch.cdist(boxes, objects, p=1)
    overlap = generalized_iou(
        box_convert(boxes, "cxcywh", "xyxy")[..., None, :], box_convert(objects, "cxcywh", "xyxy")[:, None]
    )
    return weights.cls * class_cost + weights.l1 * distance - weights.giou * overlap


def assign(costs: dict[str, Tensor], counts: list[int]) -> dict[str, Assignment]:
    """The cheapest one-to-one matching of each layer and image.

    All costs come to the host in one transfer; the device is not waited for again. With more objects than queries in an
    image, the costliest objects stay unmatched.

    Args:
        costs: [L, B, Q, N] under the name that an error calls them by; L and Q may differ.
        counts: Numbers of objects, one an image.

    Returns:
        An assignment for each of the costs, on their device.

    Raises:
        FloatingPointError: Costs that are not finite, with layer and image: the predictions are not finite either.
    """
    host = torch.cat([cost.flatten() for cost in costs.values()]).cpu().numpy()
    ends = accumulate(cost.numel() for cost in costs.values())
    found = {}
    for (name, cost), end in zip(costs.items(), ends, strict=True):
        block = host[end - cost.numel() : end].reshape(cost.shape)
        _check_finite(name, block)
        found[name] = _solve(block, counts, cost.device)
    return found


def _solve(costs: np.ndarray, counts: list[int], device: torch.device) -> Assignment:
    starts = [0, *accumulate(counts)]
    layers = []
    for layer in costs:
        pairs = [linear_sum_assignment(image[:, :n]) for image, n in zip(layer, counts, strict=True)]
        queries = np.concatenate([rows for rows, _ in pairs])
        targets = np.concatenate([columns + start for (_, columns), start in zip(pairs, starts[:-1], strict=True)])
        layers.append((queries, targets))
    matches = [min(costs.shape[2], n) for n in counts]
    images = np.repeat(np.arange(len(counts)), matches)
    rows = np.stack([images, *(queries for queries, _ in layers), *(targets for _, targets in layers)])
    table = torch.from_numpy(rows.astype(np.int64)).to(device)
    return Assignment(table[0], table[1 : 1 + len(layers)], table[1 + len(layers) :])


def _check_finite(name: str, costs: np.ndarray) -> None:
    if np.isfinite(costs).all():
        return
    layer, image, query, _ = np.argwhere(~np.isfinite(costs))[0]
    raise FloatingPointError(
        f"the matching costs of the {name}, layer {layer}, image {image} of the batch, query {query} are not finite: "
        "its logits or boxes, or the image's target boxes, are NaN or infinite. Lower the learning rate, clip "
        "gradients (trainer.gradient_clip_val) or look for broken targets."
    )


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised intersection over union (arXiv 1902.09630, algorithm 1) of boxes in batches of any shape.

    torchvision's pairwise one has no batch axes, and its loss adds 1e-7 to areas, which small relative boxes feel.

    Args:
        boxes: [..., 4] xyxy.
        others: [..., 4] xyxy, broadcast against `boxes`.

    Returns:
        [...], from -1 to 1.
    """
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1)
    low, high = torch.maximum(boxes, others), torch.minimum(boxes, others)
    intersection = (high[..., 2:] - low[..., :2]).clamp(min=0).prod(-1)
    union = areas - intersection
    hull = (low[..., 2:] - high[..., :2]).prod(-1)
    return intersection / union - (hull - union) / hull
