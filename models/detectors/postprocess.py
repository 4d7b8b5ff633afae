"""From the logits and relative boxes of queries to scored, labelled boxes in pixels."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert


class Detections(NamedTuple):
    """The k detections of each of B images, best first.

    Attributes:
        scores: float32 [B, k], from 0 to 1.
        labels: int64 [B, k].
        queries: int64 [B, k], the query that each detection comes from.
        boxes: float32 [B, k, 4], (cx, cy, w, h) relative to the image.
    """

    scores: Tensor
    labels: Tensor
    queries: Tensor
    boxes: Tensor


def top_scores(logits: Tensor, boxes: Tensor, k: int) -> Detections:
    """The k best of all queries and classes by sigmoid score; a query comes back once for each of its classes there.

    So do Deformable DETR (arXiv 2010.04159) and SOLQ (k = 100), and SMCA (arXiv 2101.07448; k = Q).

    Args:
        logits: [B, Q, C].
        boxes: [B, Q, 4], (cx, cy, w, h).
        k: How many; all Q * C where that is fewer.
    """
    num_classes = logits.shape[-1]
    scores = logits.float().sigmoid().flatten(1)
    best, places = scores.topk(torch.sym_min(k, scores.shape[1]))
    return _detections(best, places % num_classes, places // num_classes, boxes)


def best_classes(logits: Tensor, boxes: Tensor) -> Detections:
    """Each query with its likeliest class by softmax, the last logit, "no object", left out of the choice (DETR).

    Args:
        logits: [B, Q, K + 1].
        boxes: [B, Q, 4], (cx, cy, w, h).

    Returns:
        All Q queries.
    """
    scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)
    if torch.compiler.is_exporting():
        # ONNX has no stable sort.
        scores, queries = scores.topk(scores.shape[1])
    else:
        scores, queries = scores.sort(descending=True, stable=True)
    return _detections(scores, labels.gather(1, queries), queries, boxes)


def _detections(scores: Tensor, labels: Tensor, queries: Tensor, boxes: Tensor) -> Detections:
    chosen = boxes.float().gather(1, queries[..., None].expand(-1, -1, 4))
    return Detections(scores, labels, queries, chosen)


def to_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Relative boxes in the pixels of an image; what lies outside of it is kept.

    Args:
        boxes: [..., 4], (cx, cy, w, h).
        size: height and width in pixels.

    Returns:
        float32 [..., 4] xyxy.
    """
    height, width = size
    x0, y0, x1, y1 = box_convert(boxes.float(), "cxcywh", "xyxy").unbind(-1)
    return torch.stack([x0 * width, y0 * height, x1 * width, y1 * height], -1)
