"""Builders of the recorded SOLQ cases: mask code, matching, losses and post-processing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.detectors.matching import Classification, MatchCosts, assign, match_costs
from models.detectors.postprocess import Detections, to_pixels, top_scores
from models.detectors.predictions import Predictions
from models.detectors.set_criterion import LossWeights, SetCriterion, SetTarget
from models.layers.mask_code import MaskCode, zigzag
from models.layers.mask_paste import paste

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def mask_code(config: dict[str, Any]) -> MaskCode:
    return MaskCode(config["n_keep"], config["gt_mask_len"])


def flat(frequencies: Tensor, size: int) -> Tensor:
    return frequencies @ torch.tensor([size, 1])


def dct_codec(case: Case) -> dict[str, Tensor]:
    code, size = mask_code(case.config), case.config["gt_mask_len"]
    vectors = code.encode(case.inputs["masks"])
    noisy = vectors + case.inputs["noise"]
    decoded, noisy_decoded = code.decode(vectors), code.decode(noisy)
    frequencies = zigzag(size, case.config["n_keep"])
    # The published table of an odd size ends halfway (as far as it goes, it is right).
    tables = {n: flat(zigzag(n, case.shapes[f"out.zigzag_full_{n}"].numel()), n) for n in case.config["zigzag_full"]}
    # Of the larger cases only one row of the maps was kept.
    return {
        "out.vectors": vectors,
        "out.vectors_torch_dct": vectors,
        "out.decoded": decoded,
        "out.decoded_row3": decoded[:, 3],
        "out.decoded_torch_dct_row3": decoded[:, 3],
        "out.decoded_binary": code.masks(vectors).long(),
        "out.noisy_decoded": noisy_decoded,
        "out.noisy_decoded_row3": noisy_decoded[:, 3],
        "out.noisy_decoded_binary": code.masks(noisy).long(),
        "out.zigzag_table": flat(frequencies, size),
        "out.zigzag_rc_v2": frequencies,
        **{f"out.zigzag_full_{n}": table for n, table in tables.items()},
    }


def padded(masks: list[Tensor]) -> list[Tensor]:
    height, width = (max(each.shape[side] for each in masks) for side in (-2, -1))
    return [F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2])) for each in masks]


def per_image(case: Case, name: str) -> list[Tensor]:
    images = len(case.config["counts"])
    return [case.inputs[f"targets.{i}.{name}"] for i in range(images)]


def mask_targets(case: Case) -> dict[str, Tensor]:
    code = mask_code(case.config)
    masks, boxes = torch.cat(padded(per_image(case, "masks"))), torch.cat(per_image(case, "xyxy_boxes"))
    cropped = code.crop(masks.bool(), boxes)
    vectors = code.encode(cropped)
    # As many queries as objects, with codes of zero: whichever are matched, the loss is that of the targets alone.
    boxes, labels = torch.cat(per_image(case, "boxes")), torch.cat(per_image(case, "labels"))
    logits = torch.zeros(1, 1, len(labels), int(labels.max()) + 1)
    weights = LossWeights(vector=case.config["vector_loss_coef"])
    criterion = SetCriterion(logits.shape[-1], "focal", MatchCosts(), weights)
    zeros = Predictions(logits, boxes[None, None], torch.zeros_like(vectors)[None, None])
    loss = criterion(zeros, [SetTarget(labels, boxes, vectors)])["vector"]
    return {"out.cropped": cropped.float(), "out.vectors": vectors, "out.loss_vector": loss}


def matcher(classification: Classification) -> Any:
    def build(case: Case) -> dict[str, Tensor]:
        config = case.config
        weights = MatchCosts(config["cost_class"], config["cost_bbox"], config["cost_giou"])
        return matching(case, classification, weights, costs=True)

    return build


def matching(case: Case, classification: Classification, weights: MatchCosts, costs: bool = False) -> dict[str, Tensor]:
    """The blocks of the cost matrix, and the queries and objects matched in each image."""
    logits, boxes = case.inputs["pred_logits"][None], case.inputs["pred_boxes"][None]
    labels, counts = per_image(case, "labels"), case.config["counts"]
    cost = match_costs(logits, boxes, labels, per_image(case, "boxes"), classification, weights)
    match = assign({"decoder": cost}, counts)["decoder"]
    results = {}
    for i, n in enumerate(counts):
        mine = match.images == i
        results[f"out.src_{i}"] = match.queries[0, mine]
        results[f"out.tgt_{i}"] = match.targets[0, mine] - sum(counts[:i])
        if costs:
            results[f"out.cost_{i}"] = cost[0, i, :, :n]
    return results


def match_weights(config: dict[str, Any]) -> MatchCosts:
    costs = config["matcher_costs"]
    return MatchCosts(costs["cost_class"], costs["cost_bbox"], costs["cost_giou"])


def criterion_of(case: Case, vector_reduction: Literal["mean", "sum"]) -> SetCriterion:
    config, weights = case.config, case.config["loss_weights"]
    return SetCriterion(
        config["num_classes"],
        "focal",
        match_weights(config),
        LossWeights(
            ce=weights["loss_ce"],
            l1=weights["loss_bbox"],
            giou=weights["loss_giou"],
            vector=weights.get("loss_vector", 0) * config.get("vector_loss_coef", 1),
        ),
        alpha=config["focal_alpha"],
        vector_reduction=vector_reduction,
        vector_start=config.get("vector_start_stage", 0),
    )


def criterion(case: Case) -> dict[str, Tensor]:
    reduction: Literal["mean", "sum"] = "sum" if case.config.get("no_vector_loss_norm", False) else "mean"
    return losses(case, criterion_of(case, reduction), coded_targets(case))


def criterion_fast(case: Case) -> dict[str, Tensor]:
    return losses(case, criterion_of(case, "sum"), coded_targets(case))


def coded_targets(case: Case) -> list[SetTarget]:
    code = mask_code(case.config)
    masks = padded(per_image(case, "masks"))
    regions = per_image(case, "xyxy_boxes")
    vectors = [code.encode(code.crop(mask.bool(), region)) for mask, region in zip(masks, regions, strict=True)]
    return [SetTarget(*each) for each in zip(per_image(case, "labels"), per_image(case, "boxes"), vectors, strict=True)]


def losses(case: Case, criterion: SetCriterion, targets: list[SetTarget]) -> dict[str, Tensor]:
    """Every term without its weight, the total, its gradients, and what the published code logs besides."""
    leaves = {
        name: value.requires_grad_() for name, value in case.inputs.items() if name.rpartition(".")[2][:5] == "pred_"
    }

    def stacked(kind: str) -> Tensor | None:
        names = [f"aux_{i}.{kind}" for i in range(case.config.get("n_aux", 0))] + [kind]
        return torch.stack([leaves[name] for name in names]) if kind in leaves else None

    logits, boxes = stacked("pred_logits"), stacked("pred_boxes")
    assert logits is not None
    assert boxes is not None
    predictions = Predictions(logits, boxes, stacked("pred_vectors"), leaves.get("pred_masks"))
    proposals = None
    if "enc.pred_logits" in leaves:
        proposals = Predictions(leaves["enc.pred_logits"][None], leaves["enc.pred_boxes"][None])
    terms = criterion(predictions, targets, proposals)
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    results = {"out.total": total}
    for ours, published in PUBLISHED_TERMS.items():
        weight = case.config["loss_weights"].get(published)
        for name, value in terms.items():
            kind, _, layer = name.partition("_")
            if kind == ours:
                results["_".join(filter(None, [f"out.loss.{published}", layer]))] = value / weight
    gradients = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    results |= {f"out.grad_{name}": value for name, value in gradients.items()}
    return results | logged(case, criterion, leaves)


PUBLISHED_TERMS = {
    "ce": "loss_ce",
    "l1": "loss_bbox",
    "giou": "loss_giou",
    "vector": "loss_vector",
    "mask": "loss_mask",
    "dice": "loss_dice",
}


def logged(case: Case, criterion: SetCriterion, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two figures that the published code prints beside the losses; the framework reports average precision instead."""
    counts = torch.tensor(case.config["counts"])
    results = {}
    for name, logits in leaves.items():
        prefix, _, kind = name.rpartition(".")
        if kind == "pred_logits":
            objects = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
            layer = prefix.removeprefix("aux_")
            found = (objects - counts).abs().float().mean()
            results["_".join(filter(None, ["out.loss.cardinality_error", layer]))] = found
    labels = torch.cat(per_image(case, "labels"))
    logits, boxes = leaves["pred_logits"], leaves["pred_boxes"]
    cost = match_costs(
        logits[None],
        boxes[None],
        per_image(case, "labels"),
        per_image(case, "boxes"),
        criterion.classification,
        criterion.costs,
    )
    match = assign({"decoder": cost}, case.config["counts"])["decoder"]
    right = logits[match.images, match.queries[0]].argmax(-1) == labels[match.targets[0]]
    return results | {"out.loss.class_error": 100 - 100 * right.sum() / max(len(right), 1)}


def detections(found: Detections, sizes: list[list[int]]) -> dict[str, Tensor]:
    results = {}
    for i, size in enumerate(sizes):
        results[f"out.{i}.scores"] = found.scores[i]
        results[f"out.{i}.labels"] = found.labels[i]
        results[f"out.{i}.boxes"] = to_pixels(found.boxes[i], (size[0], size[1]))
    return results


def postprocess(case: Case, binary: bool = True) -> dict[str, Tensor]:
    code, sizes = mask_code(case.config), case.inputs["target_sizes"].tolist()
    found = top_scores(case.inputs["pred_logits"], case.inputs["pred_boxes"], case.config["top_k"])
    results = detections(found, sizes)
    for i, (height, width) in enumerate(sizes):
        vectors = case.inputs["pred_vectors"][i][found.queries[i]]
        maps = code.masks(vectors) if binary else code.decode(vectors)
        pasted = paste(maps, results[f"out.{i}.boxes"], (height, width))
        results[f"out.{i}.masks"] = pasted[:, None].float()
    return results


def postprocess_fast(case: Case) -> dict[str, Tensor]:
    return postprocess(case, binary=False)


CASES = {
    "dct_codec_small": dct_codec,
    "dct_codec_128_256": dct_codec,
    "mask_targets": mask_targets,
    "matcher": matcher("focal"),
    "criterion": criterion,
    "criterion_two_stage": criterion,
    "criterion_sum_norm": criterion,
    "criterion_fast": criterion_fast,
    "postprocess": postprocess,
    "postprocess_fast": postprocess_fast,
}
