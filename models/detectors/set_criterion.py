"""The loss of set prediction: each object is matched with one query, the other queries learn to be nothing.

Reference: "End-to-End Object Detection with Transformers", ECCV 2020, arXiv 2005.12872, equation 2 and section A.2;
"Deformable DETR", ICLR 2021, arXiv 2010.04159; "SOLQ", NeurIPS 2021, arXiv 2106.02351.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, sigmoid_focal_loss

from models.detectors.matching import (
    CLASSIFICATIONS,
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    Assignment,
    Classification,
    MatchCosts,
    assign,
    generalized_iou,
    match_costs,
)
from models.detectors.predictions import Predictions
from models.mistakes import Mistake
from models.processes import process_mean

VECTOR_REDUCTIONS = ("mean", "sum")


class SetTarget(NamedTuple):
    """The n objects of an image.

    Attributes:
        labels: int64 [n].
        boxes: float32 [n, 4], (cx, cy, w, h) relative to the image.
        vectors: float32 [n, V] mask codes, for networks that predict them.
        masks: bool [n, h, w], for networks that predict them, at the resolution of the image.
    """

    labels: Tensor
    boxes: Tensor
    vectors: Tensor | None = None
    masks: Tensor | None = None


@dataclass(frozen=True)
class LossWeights:
    """What each term of the loss is multiplied by.

    Args:
        ce: Classification.
        l1: L1 distance of boxes.
        giou: 1 - GIoU of boxes.
        vector: L1 distance of mask codes.
        mask: Focal loss of masks.
        dice: Dice loss of masks.
    """

    ce: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    vector: float = 3.0
    mask: float = 1.0
    dice: float = 1.0


class SetCriterion(nn.Module):
    """Weighted losses of matched predictions, after every decoder layer. It has no parameters.

    Every layer is matched by itself. Sums over objects are divided by the mean number of objects of a process, at least
    one, and means over queries or matches are over those of all processes, too; the published codes of DETR (the
    cross-entropy) and SOLQ (the mask codes) take these over each process's own. All is in float32.

    Args:
        num_classes: K; labels are 0 to K - 1.
        classification: `focal`: independent sigmoids, focal loss summed over queries and classes; `softmax`: K + 1
            logits, the last of which is "no object", and their cross-entropy, a weighted mean over queries.
        costs: Weights of the terms of the matching.
        weights: Weights of the terms of the loss.
        no_object_weight: Weight of an unmatched query in the cross-entropy.
        alpha: Weight of positives in the focal loss; negatives have 1 - alpha.
        vector_reduction: `mean` over matches and coefficients, or `sum`, divided by the number of objects: about V
            times as much.
        vector_start: First decoder layer whose mask codes are trained.

    Raises:
        Mistake: An unknown choice, or numbers out of range.
    """

    def __init__(
        self,
        num_classes: int,
        classification: Classification,
        costs: MatchCosts,
        weights: LossWeights,
        no_object_weight: float = 0.1,
        alpha: float = FOCAL_ALPHA,
        vector_reduction: Literal["mean", "sum"] = "mean",
        vector_start: int = 0,
    ) -> None:
        super().__init__()
        if classification not in CLASSIFICATIONS:
            raise Mistake(f"classification is one of {', '.join(CLASSIFICATIONS)}, not {classification!r}")
        if vector_reduction not in VECTOR_REDUCTIONS:
            raise Mistake(f"vector_reduction is one of {', '.join(VECTOR_REDUCTIONS)}, not {vector_reduction!r}")
        if num_classes < 1 or vector_start < 0 or no_object_weight < 0 or not 0 <= alpha <= 1:
            raise Mistake(
                f"num_classes={num_classes} is at least 1, vector_start={vector_start} and no_object_weight="
                f"{no_object_weight} are 0 or more, and alpha={alpha} is from 0 to 1"
            )
        self.num_classes, self.classification = num_classes, classification
        self.costs, self.weights = costs, weights
        self.no_object_weight, self.alpha = no_object_weight, alpha
        self.vector_reduction, self.vector_start = vector_reduction, vector_start

    def forward(
        self, predictions: Predictions, targets: list[SetTarget], proposals: Predictions | None = None
    ) -> dict[str, Tensor]:
        """The weighted losses, whose sum is differentiated.

        Args:
            predictions: Predictions of L decoder layers.
            targets: Objects of the B images.
            proposals: The encoder's (two-stage), one layer; an object is to be found there whatever its class, so
                that all labels are 0.

        Returns:
            Scalars `ce`, `l1`, `giou` and, with mask codes, `vector` of the last decoder layer, the same with the
            suffix `_0`, `_1` ... of the layers before it and `_enc` of the proposals; `mask` and `dice` of predicted
            masks.

        Raises:
            FloatingPointError: Predictions that are not finite.
        """
        device = predictions.boxes.device
        count = process_mean(float(sum(len(target.labels) for target in targets)), device).clamp(min=1)
        labels, boxes = [target.labels for target in targets], [target.boxes for target in targets]
        sides: dict[str, tuple[Predictions, list[Tensor]]] = {"decoder": (predictions, labels)}
        if proposals is not None:
            sides["proposals"] = (proposals, [torch.zeros_like(each) for each in labels])
        costs = {
            name: match_costs(side.logits, side.boxes, classes, boxes, self.classification, self.costs)
            for name, (side, classes) in sides.items()
        }
        matches = assign(costs, [len(each) for each in labels])
        losses: dict[str, Tensor] = {}
        for name, (side, classes) in sides.items():
            terms = self._box_terms(side, torch.cat(classes), torch.cat(boxes), matches[name], count)
            suffixes = ["_enc"] if name == "proposals" else [*(f"_{i}" for i in range(len(side.logits) - 1)), ""]
            losses |= _named(terms, suffixes)
        if predictions.vectors is not None:
            codes = torch.cat([_given(target.vectors, "vectors") for target in targets])
            distances = self._vector_loss(predictions.vectors, codes, matches["decoder"], count)
            last = len(predictions.vectors) - 1
            losses |= {
                "vector" if i == last else f"vector_{i}": distance
                for i, distance in enumerate(distances.unbind())
                if i >= self.vector_start or i == last
            }
        if predictions.masks is not None:
            masks = _padded([_given(target.masks, "masks") for target in targets])
            losses |= self._mask_losses(predictions.masks, masks, matches["decoder"], count)
        return losses

    def _box_terms(
        self, side: Predictions, labels: Tensor, boxes: Tensor, match: Assignment, count: Tensor
    ) -> dict[str, Tensor]:
        found = _matched(side.boxes, match)
        wanted = boxes.float()[match.targets]
        overlap = generalized_iou(box_convert(found, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"))
        return {
            "ce": self.weights.ce * self._class_loss(side.logits.float(), labels[match.targets], match, count),
            "l1": self.weights.l1 * (found - wanted).abs().sum((1, 2)) / count,
            "giou": self.weights.giou * (1 - overlap).sum(1) / count,
        }

    def _class_loss(self, logits: Tensor, labels: Tensor, match: Assignment, count: Tensor) -> Tensor:
        """Losses [L] of logits [L, B, Q, C] for the labels [L, M] of the matches."""
        layers = torch.arange(len(logits), device=logits.device)[:, None]
        if self.classification == "focal":
            positive = torch.zeros_like(logits)
            positive[layers, match.images, match.queries, labels] = 1
            return sigmoid_focal_loss(logits, positive, self.alpha, FOCAL_GAMMA).sum((1, 2, 3)) / count
        classes = torch.full(logits.shape[:3], self.num_classes, device=logits.device)
        classes[layers, match.images, match.queries] = labels
        weights = torch.where(classes == self.num_classes, self.no_object_weight, 1.0)
        surprise = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), reduction="none").view_as(weights)
        return (weights * surprise).sum((1, 2)) / process_mean(weights.sum((1, 2)), weights.device)

    def _vector_loss(self, vectors: Tensor, codes: Tensor, match: Assignment, count: Tensor) -> Tensor:
        distance = (_matched(vectors, match) - codes.float()[match.targets]).abs()
        if self.vector_reduction == "mean":
            count = process_mean(float(distance[0].numel()), distance.device).clamp(min=1)
        return self.weights.vector * distance.sum((1, 2)) / count

    def _mask_losses(self, logits: Tensor, masks: Tensor, match: Assignment, count: Tensor) -> dict[str, Tensor]:
        """Focal and dice loss of the last layer's matches, at the resolution of the masks."""
        found = logits.float()[match.images, match.queries[-1]]
        wanted = masks[match.targets[-1]].flatten(1).float()
        found = F.interpolate(found[:, None], masks.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
        focal = sigmoid_focal_loss(found, wanted, self.alpha, FOCAL_GAMMA).sum() / masks.shape[-2:].numel()
        p = found.sigmoid()
        dice = 1 - (2 * (p * wanted).sum(1) + 1) / (p.sum(1) + wanted.sum(1) + 1)
        return {"mask": self.weights.mask * focal / count, "dice": self.weights.dice * dice.sum() / count}


def relative_targets(targets: list[dict[str, Any]], images: list[Tensor]) -> list[SetTarget]:
    """Labels and boxes of a data set's targets, relative to the size of each image.

    Args:
        targets: `boxes` [n, 4] xyxy in pixels of the image and `labels` int64 [n] of each image.
        images: [3, h, w] each, before padding.
    """
    relative = []
    for target, image in zip(targets, images, strict=True):
        height, width = image.shape[-2:]
        cx, cy, w, h = box_convert(target["boxes"].float(), "xyxy", "cxcywh").unbind(-1)
        relative.append(SetTarget(target["labels"], torch.stack([cx / width, cy / height, w / width, h / height], -1)))
    return relative


def _matched(predicted: Tensor, match: Assignment) -> Tensor:
    """Of predictions [L, B, Q, D] the matched ones, float32 [L, M, D]."""
    layers = torch.arange(len(predicted), device=predicted.device)[:, None]
    return predicted.float()[layers, match.images, match.queries]


def _named(terms: dict[str, Tensor], suffixes: list[str]) -> dict[str, Tensor]:
    return {
        name + suffix: value
        for name, values in terms.items()
        for suffix, value in zip(suffixes, values.unbind(), strict=True)
    }


def _given(values: Tensor | None, name: str) -> Tensor:
    if values is None:
        raise Mistake(f"the network predicts {name}, so every target needs them")
    return values


def _padded(masks: list[Tensor]) -> Tensor:
    """Masks of images of several sizes as one tensor [N, H, W], zero at the right and below."""
    height, width = (max(each.shape[side] for each in masks) for side in (-2, -1))
    return torch.cat([F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2])) for each in masks])
