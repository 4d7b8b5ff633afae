"""Builders of the recorded whole networks of Deformable DETR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.detectors.batching import pad
from models.detectors.deformable_detr import DeformableDETR
from models.detectors.predictions import Predictions
from models.detectors.set_criterion import SetTarget
from models.official import deformable_detr, load
from tests.golden_builders.solq_backbone import images_of, resnet
from tests.golden_builders.solq_losses import PUBLISHED_TERMS, criterion_of, logged, per_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.library.golden import Case

TOLERANCE = 5e-5


def options(config: dict[str, Any]) -> dict[str, Any]:
    """Our arguments for the published ones."""
    stride = {"output_stride": 16} if config.get("dilation") else {}
    return {
        "backbone": "narrow_resnet",
        "backbone_options": resnet(config) | stride,
        "num_classes": config["num_classes"],
        "num_queries": config["num_queries"],
        "hidden_dim": config["hidden_dim"],
        "num_heads": config["nheads"],
        "feedforward_dim": config["dim_feedforward"],
        "encoder_layers": config["enc_layers"],
        "decoder_layers": config["dec_layers"],
        "encoder_points": config["enc_n_points"],
        "decoder_points": config["dec_n_points"],
        "dropout": config["dropout"],
        "num_levels": config["num_feature_levels"],
        "refine": config["with_box_refine"],
        "two_stage": config["two_stage"],
    }


def whole(
    case: Case,
    network: DeformableDETR,
    official: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    targets: list[SetTarget],
) -> dict[str, Tensor]:
    """States, predictions, losses and gradients of a network whose weights are loaded."""
    network.eval()
    images, padding = pad(images_of(case))
    with torch.no_grad():
        memory = network.encode(images, padding)
        queries, _ = network.queries(memory)
        states, boxes = network.transformer.decode(memory, queries, network.bbox_embed if network.refine else ())
    references = torch.stack(boxes) if boxes else queries.references.expand(len(states), -1, -1, -1)
    results = {
        "out.memory": memory.tokens,
        "out.hs": torch.stack(states),
        "out.init_reference": queries.references,
        "out.inter_references": references,
    }
    decoded = network.decode(network.encode(images, padding))
    predictions, proposals = network.predictions(decoded, all_layers=True), decoded.proposals
    last = len(predictions.logits) - 1
    leaves = {}
    for i in range(last + 1):
        prefix = "" if i == last else f"aux_{i}."
        leaves |= {f"{prefix}pred_logits": predictions.logits[i], f"{prefix}pred_boxes": predictions.boxes[i]}
        if predictions.vectors is not None:
            leaves[f"{prefix}pred_vectors"] = predictions.vectors[i]
    proposed = None
    if proposals is not None:
        proposed = Predictions(proposals.logits[None], proposals.boxes[None])
        leaves |= {"enc.pred_logits": proposals.logits, "enc.pred_boxes": proposals.boxes}
        results["out.topk_proposals"] = proposals.chosen
    reduction = "sum" if case.config.get("no_vector_loss_norm", False) else "mean"
    criterion = criterion_of(case, reduction)
    losses = criterion(predictions, targets, proposed)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    results |= {f"out.{name}": value for name, value in leaves.items()} | logged(case, criterion, leaves)
    for name, value in losses.items():
        kind, _, layer = name.partition("_")
        published = PUBLISHED_TERMS[kind]
        weight = case.config["loss_weights"][published]
        results["_".join(filter(None, [f"out.loss.{published}", layer]))] = value / weight
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())
    named = official(gradients | {name: value for name, value in network.state_dict().items() if name in buffers})
    return results | {f"grad.{name}": value for name, value in named.items()} | {"out.total": total}


def deform_forward(case: Case) -> dict[str, Tensor]:
    network = DeformableDETR(**options(case.config))
    load(network, deformable_detr.LAYOUT.to_ours(case.state))
    targets = [SetTarget(*each) for each in zip(per_image(case, "labels"), per_image(case, "boxes"), strict=True)]
    return whole(case, network, deformable_detr.LAYOUT.to_official, targets)


CASES = {
    "deform_forward": deform_forward,
    "deform_forward_single_scale": deform_forward,
    "deform_forward_refine": deform_forward,
    "deform_forward_two_stage": deform_forward,
}
