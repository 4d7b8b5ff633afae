"""Builders of the recorded detectors: Mask and Cascade Mask R-CNN on ConvNeXt, and RetinaNet of detectron2."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import models.backbones.resnet_msra  # noqa: F401 (registers with timm)
from datamodules import Coco, Pixels
from models.detectors.anchors import anchors, flatten_outputs
from models.detectors.conventions import CONVENTIONS
from models.detectors.rcnn import RCNN, CascadeMaskRCNN, MaskRCNN
from models.detectors.retinanet import RetinaNet
from models.detectors.roi_stage import BOX_SIZE
from models.detectors.rpn import CELLS
from models.official import detectron2, load, mmdet

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5
# More than there are: every box is drawn.
ALL = 1 << 20


def convnext_detector(case: Case) -> RCNN:
    config = case.config
    rpn, rcnn = config["rpn_test"], config["rcnn_test"]
    cascade = any(name.startswith("roi_head.bbox_head.2.") for name in case.state)
    network = (CascadeMaskRCNN if cascade else MaskRCNN)(
        "convnext_tiny",
        config["num_classes"],
        options={"dims": config["dims"], "depths": config["depths"]},
        fpn_chans=config["fpn_channels"],
        fc_dim=config["fc"],
        output_norm=True,
        frozen_stages=0,
        convention=replace(
            CONVENTIONS["mmdet"],
            proposals_before=(rpn["nms_pre"], rpn["nms_pre"]),
            proposals_after=(rpn["nms_post"], rpn["nms_post"]),
            least_proposal=rpn["min_bbox_size"],
        ),
        score_threshold=rcnn["score_thr"],
        nms_threshold=rcnn["nms"]["iou_threshold"],
        max_detections=rcnn["max_per_img"],
    )
    load(network, mmdet.LAYOUT.to_ours(case.state))
    network.rpn.nms_threshold = rpn["nms_thr"]
    return network.eval()


def pyramid(network: RCNN, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    padding = torch.zeros_like(image[:, 0], dtype=torch.bool)
    maps = [feature for feature, _ in network.backbone(image, padding)]
    normed = [norm(feature) for norm, feature in zip(network.neck.norms, maps, strict=True)]
    return normed, network.neck(maps)


def background_last(logits: Tensor) -> Tensor:
    return logits.roll(-1, 1)


def with_image(boxes: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)


@torch.no_grad()
def rcnn_eval(case: Case) -> dict[str, Tensor]:
    network = convnext_detector(case)
    size = tuple(case.inputs["img_shape"].tolist())
    normed, levels = pyramid(network, case.inputs["image"])
    logits, deltas = network.rpn.head(levels)
    results = {f"out.C{i}": value for i, value in enumerate(normed, 2)}
    results |= {f"out.P{i}": value for i, value in enumerate(levels, 2)}
    results |= {f"out.rpn_cls.{i}": value for i, value in enumerate(logits)}
    results |= {f"out.rpn_reg.{i}": value for i, value in enumerate(deltas)}
    boxes = anchors(levels, network.strides, [(CELLS * stride,) for stride in network.strides], network.convention)
    flat_logits = [flatten_outputs(level, 1).squeeze(-1) for level in logits]
    flat_deltas = [flatten_outputs(level, 4) for level in deltas]
    ((proposals, scores),) = network.rpn.propose(flat_logits, flat_deltas, boxes, [size])
    results["out.proposals"] = torch.cat([proposals, scores[:, None]], 1)
    stages = network.stages()
    regions = [proposals]
    for i, stage in enumerate(stages):
        suffix = f".{i}" if len(stages) > 1 else ""
        results[f"out.rois{suffix}"] = with_image(regions[0])
        stage_logits, stage_deltas = stage.boxes_of(stage.pool(levels, regions, BOX_SIZE))
        results[f"out.box_cls{suffix}"] = background_last(stage_logits)
        results[f"out.box_reg{suffix}"] = stage_deltas.flatten(1)
        regions = stage.refine(regions, stage_logits[:, 1:].argmax(1), stage_deltas, [size])
    found = network.candidates(levels, [size], [proposals])
    results["out.det_boxes"] = torch.cat([found[0].boxes, found[0].scores[:, None]], 1)
    results["out.det_labels"] = found[0].labels
    results["out.det_masks"] = network.mask_probabilities(levels, found)[0]
    return results


def rcnn_loss(case: Case) -> dict[str, Tensor]:
    network = convnext_detector(case)
    network.rpn.drawn = ALL
    for stage in network.stages():
        stage.drawn = ALL
    inputs = case.inputs
    size = tuple(inputs["img_shape"].tolist())
    shape = case.config["gt_masks_shape"]
    bits = (inputs["gt_masks"][:, None] >> torch.arange(7, -1, -1)) & 1
    masks = bits.flatten()[: math.prod(shape)].reshape(shape).bool()
    targets = [{"boxes": inputs["gt_boxes"], "labels": inputs["gt_labels"], "masks": masks}]
    _, levels = pyramid(network, inputs["image"])
    _, losses = network.rpn(levels, [size], targets)
    losses |= network.losses(levels, [size], [inputs["proposals"]], targets)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    results = {"out.total": total, "out.loss_rpn_cls": losses["rpn_cls"], "out.loss_rpn_bbox": losses["rpn_box"]}
    cascade = len(network.roi_heads) > 1
    for i in range(len(network.roi_heads)):
        before, after = (f"s{i}.", f"_{i}") if cascade else ("", "")
        for official, ours in (("cls", "cls"), ("bbox", "box"), ("mask", "mask")):
            results[f"out.{before}loss_{official}"] = losses[f"{ours}{after}"]
    gradients = network.state_dict() | {name: parameter.grad for name, parameter in network.named_parameters()}
    official = mmdet.LAYOUT.to_official(gradients)
    return results | {f"grad.{name}": value for name, value in official.items()}


def retinanet(case: Case) -> tuple[RetinaNet, list[Tensor]]:
    config = case.config
    planes = config["res2_channels"] // 4
    network = RetinaNet(
        f"resnet{config['resnet_depth']}_msra",
        config["num_classes"],
        num_convs=config["num_convs"],
        options={
            "stem_chans": config["stem_channels"],
            "channels": [planes * 2**stage for stage in range(4)],
            "base_width": 64 * config["width_per_group"] / planes,
        },
        fpn_chans=config["fpn_channels"],
        score_threshold=config["score_thresh"],
        nms_threshold=config["nms"],
        max_detections=config["max_dets"],
    )
    load(network, detectron2.LAYOUT.to_ours(case.state))
    # Recorded images are BGR; ours become it on the device, when these weights are used.
    data = Coco(root="")
    mean, std = (tuple(map(float, config[name])) for name in ("pixel_mean_bgr", "pixel_std"))
    data.adopt(replace(Pixels.stated(detectron2.LAYOUT.pixels_of(case.state)), mean=mean, std=std))
    rgb = [case.inputs[f"image.{i}"].flip(0).to(torch.uint8) for i in range(len(config["image_sizes"]))]
    return network, data.on_after_batch_transfer({"image": rgb}, 0)["image"]


@torch.no_grad()
def retinanet_eval(case: Case) -> dict[str, Tensor]:
    network, images = retinanet(case)
    seen: list[Tensor] = []
    network.eval().backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    levels, _ = network.levels(images)
    logits, deltas = network.head(levels)
    results = {"out.images": seen[0]}
    results |= {f"out.p{i}": value for i, value in enumerate(levels, 3)}
    results |= {f"out.logits.{i}": value for i, value in enumerate(logits)}
    results |= {f"out.deltas.{i}": value for i, value in enumerate(deltas)}
    for i, boxes in enumerate(network.anchors(levels)):
        results[f"out.anchors.{i}"] = boxes[: case.shapes[f"out.anchors.{i}"][0]]
    for i, found in enumerate(network(images)):
        results[f"out.det_boxes.{i}"] = found["boxes"]
        results[f"out.det_classes.{i}"] = found["labels"]
        results[f"out.det_scores.{i}"] = found["scores"]
    return results


def retinanet_loss(case: Case) -> dict[str, Tensor]:
    network, images = retinanet(case)
    network.train()
    inputs = case.inputs
    targets = [{"boxes": inputs[f"gt_boxes.{i}"], "labels": inputs[f"gt_classes.{i}"]} for i in range(len(images))]
    levels, _ = network.levels(images)
    boxes = torch.cat(network.anchors(levels))
    labels = []
    for target in targets:
        matches = network.match(boxes, target)
        of_objects = target["labels"][matches.clamp(min=0)]
        labels.append(torch.where(matches >= 0, of_objects, torch.where(matches == -1, network.num_classes, -1)))
    results = {"out.gt_labels": torch.stack(labels)}
    iterations = sum(name.startswith("out.loss_cls.") for name in case.shapes)
    for i in range(iterations):
        results[f"out.normalizer_before.{i}"] = network.positives.clone()
        losses = network(images, targets)
        results[f"out.normalizer_after.{i}"] = network.positives.clone()
        results[f"out.loss_cls.{i}"], results[f"out.loss_box_reg.{i}"] = losses["cls"], losses["box"]
        if i == 0:
            sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return results | {f"grad.{detectron2.LAYOUT.official_name(name)}": value for name, value in gradients.items()}


CASES = {
    "convnext_mask_rcnn_eval": rcnn_eval,
    "convnext_mask_rcnn_loss": rcnn_loss,
    "convnext_cascade_eval": rcnn_eval,
    "convnext_cascade_loss": rcnn_loss,
    "d2_retinanet_eval": retinanet_eval,
    "d2_retinanet_loss": retinanet_loss,
}
