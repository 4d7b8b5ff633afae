"""Builders of the recorded pose estimation cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from datamodules.mpii import HEAD_SHARE
from datamodules.transforms.pose import crop_matrix, heatmap_targets, transform_points
from lightning_modules.pose_estimation import joint_losses
from lightning_modules.pose_estimation import pose_losses as sample_losses
from lightning_modules.pose_metrics import PARTS, PCKh, heatmap_accuracy
from models.pose.decoding import decode, mirror_back, peaks

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def heatmap_target(case: Case) -> dict[str, Tensor]:
    (width, height), (columns, rows) = case.config["image_size"], case.config["heatmap_size"]
    joints, visible = case.inputs["joints"].double().numpy(), case.inputs["joints_vis"].numpy()
    stride = np.array([width / columns, height / rows])
    target, weight = heatmap_targets(joints[:, :2], visible[:, 0], (rows, columns), stride, case.config["sigma"])
    return {"out.target": torch.from_numpy(target), "out.target_weight": torch.from_numpy(weight)[:, None]}


def pckh(case: Case) -> dict[str, Tensor]:
    # Recorded positions count from 1, predictions from 0.
    positions = case.inputs["pos_gt_src"].permute(2, 0, 1) - 1
    annotated = 1 - case.inputs["jnt_missing"].T
    boxes = case.inputs["headboxes_src"]
    metric = PCKh()
    metric.update(
        case.inputs["preds"][..., :2],
        torch.cat([positions, annotated[..., None]], 2),
        HEAD_SHARE * (boxes[1] - boxes[0]).norm(dim=0),
    )
    values = metric.compute()
    names = [*(f"pckh_{part}" for part in PARTS), "pckh", "pckh_01"]
    return {"out.pckh": torch.stack([values[name] for name in names])}


def pose_affine(case: Case) -> dict[str, Tensor]:
    width, height = case.config["output_size"]
    points = case.inputs["pts"].double().numpy()
    results: dict[str, Tensor] = {}
    people = zip(case.inputs["center"].double(), case.inputs["scale"].double(), case.inputs["rot"], strict=True)
    for i, (centre, scale, rotation) in enumerate(people):
        matrix = crop_matrix(centre.numpy(), scale[0].item(), rotation.item(), (height, width))
        inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
        found = {"fwd": matrix, "inv": inverse, "pts": transform_points(points, matrix)}
        results |= {f"out.{name}.{i}": torch.from_numpy(value) for name, value in found.items()}
    return results


def pose_decode(case: Case) -> dict[str, Tensor]:
    heatmaps = case.inputs["heatmaps"]
    joints, scores = decode(heatmaps, case.inputs["center"], case.inputs["scale"][:, 0])
    by_joint, mean = heatmap_accuracy(heatmaps, case.inputs["target"])
    return {
        "out.final_preds": joints,
        "out.max_preds": peaks(heatmaps)[0],
        "out.maxvals": scores[..., None],
        "out.train_acc": torch.cat([mean[None], by_joint.nan_to_num(-1.0)]),
        "out.train_avg_acc": mean,
        "out.train_cnt": by_joint.isfinite().sum(),
    }


def pose_flip_test(case: Case) -> dict[str, Tensor]:
    mirrored = list(range(case.config["shape"][1]))
    for left, right in case.config["pairs"]:
        mirrored[left], mirrored[right] = right, left
    plain, flipped = case.inputs["out"], case.inputs["out_flipped"]
    back, shifted = (mirror_back(flipped, mirrored, shift) for shift in (False, True))
    return {
        "out.flipped_back": back,
        "out.merged": (plain + back) / 2,
        "out.merged_shifted": (plain + shifted) / 2,
    }


def pose_losses(case: Case) -> dict[str, Tensor]:
    target, weight = case.inputs["target"], case.inputs["target_weight"][..., 0]
    settings = {
        "mse": (weight, None),
        "mse_noweight": (torch.ones_like(weight), None),
        "ohkm": (weight, case.config["topk"]),
    }
    results = {}
    for name, (weights, hardest) in settings.items():
        predicted = case.inputs["pred"].clone().requires_grad_()
        loss = sample_losses(joint_losses(predicted, target, weights), hardest).mean()
        loss.backward()
        results |= {f"out.{name}": loss, f"grad.in.pred.{name}": predicted.grad}
    return results


CASES = {
    "heatmap_target": heatmap_target,
    "pckh": pckh,
    "pose_affine": pose_affine,
    "pose_decode": pose_decode,
    "pose_flip_test": pose_flip_test,
    "pose_losses": pose_losses,
}
