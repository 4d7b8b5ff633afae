"""Builders of the recorded cases of the DETR family: matching, losses and post-processing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from models.detectors.postprocess import best_classes, to_pixels, top_scores
from models.detectors.set_criterion import LossWeights, SetCriterion, SetTarget
from tests.golden_builders.solq_losses import (
    criterion_of,
    detections,
    losses,
    match_weights,
    matcher,
    matching,
    per_image,
)

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def boxed_targets(case: Case) -> list[SetTarget]:
    return [SetTarget(*each) for each in zip(per_image(case, "labels"), per_image(case, "boxes"), strict=True)]


def detr_criterion(case: Case) -> dict[str, Tensor]:
    config, weights = case.config, case.config["loss_weights"]
    criterion = SetCriterion(
        config["num_classes"],
        "softmax",
        match_weights(config),
        LossWeights(
            ce=weights["loss_ce"],
            l1=weights["loss_bbox"],
            giou=weights["loss_giou"],
            mask=weights["loss_mask"],
            dice=weights["loss_dice"],
        ),
        no_object_weight=config["eos_coef"],
    )
    masks = per_image(case, "masks")
    targets = [each._replace(masks=mask.bool()) for each, mask in zip(boxed_targets(case), masks, strict=True)]
    return losses(case, criterion, targets)


def deform_criterion(case: Case) -> dict[str, Tensor]:
    return losses(case, criterion_of(case, "mean"), boxed_targets(case))


def smca_criterion(case: Case) -> dict[str, Tensor]:
    return matching(case, "focal", match_weights(case.config)) | deform_criterion(case)


def detr_postprocess(case: Case) -> dict[str, Tensor]:
    found = best_classes(case.inputs["pred_logits"], case.inputs["pred_boxes"])
    # Ours are sorted by score, the published ones by query.
    order = found.queries.argsort(1)
    results = {}
    for i, (height, width) in enumerate(case.inputs["target_sizes"].tolist()):
        results[f"out.{i}.scores"] = found.scores[i, order[i]]
        results[f"out.{i}.labels"] = found.labels[i, order[i]]
        results[f"out.{i}.boxes"] = to_pixels(found.boxes[i], (height, width))[order[i]]
    return results


def deform_postprocess(case: Case) -> dict[str, Tensor]:
    found = top_scores(case.inputs["pred_logits"], case.inputs["pred_boxes"], case.config["top_k"])
    return detections(found, case.inputs["target_sizes"].tolist())


def smca_postprocess(case: Case) -> dict[str, Tensor]:
    found = top_scores(case.inputs["pred_logits"], case.inputs["pred_boxes"], case.config["Q"])
    return detections(found, case.inputs["target_sizes"].tolist())


CASES = {
    "detr_matcher": matcher("softmax"),
    "detr_criterion": detr_criterion,
    "detr_postprocess": detr_postprocess,
    "deform_criterion": deform_criterion,
    "deform_postprocess": deform_postprocess,
    "smca_criterion": smca_criterion,
    "smca_postprocess": smca_postprocess,
}
