"""Builders of the recorded losses, metrics and evaluations of segmenters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.segmentation_losses import Ohem, cross_entropy, ohem_cross_entropy
from lightning_modules.segmentation_metrics import Tally, scores
from models.layers.resize import resize
from models.segmenters.inference import Predict, multi_scale, sliding_window

if TYPE_CHECKING:
    from tests.test_golden import Case

TOLERANCE = 1e-5


def confusion_miou(case: Case) -> dict[str, Tensor]:
    tally = Tally()
    for label, predicted in zip(case.inputs["label"], case.inputs["pred"], strict=True):
        bytes_ = predicted.to(torch.uint8), label.to(torch.uint8)
        tally.count(0, *bytes_, case.config["num_class"], torch.tensor(0.0))
    zero, exclude = scores(tally.confusion[0], "zero"), scores(tally.confusion[0], "exclude")
    return {
        "out.confusion": exclude.confusion,
        "out.iou_hrnet": zero.iou,
        "out.miou_hrnet": torch.tensor(zero.miou),
        "out.mean_acc_hrnet": torch.tensor(zero.class_accuracy),
        "out.pixel_acc": torch.tensor(zero.pixel_accuracy),
        "out.iou_mmseg_nan0": exclude.iou.nan_to_num(-1),
        "out.iou_valid": exclude.iou.isfinite().long(),
        "out.miou_mmseg": torch.tensor(exclude.miou),
        "out.macc_mmseg": torch.tensor(exclude.class_accuracy),
        "out.aacc_mmseg": torch.tensor([exclude.pixel_accuracy]),
    }


def ohem_ce(case: Case) -> dict[str, Tensor]:
    label, weights = case.inputs["label"], case.inputs["class_weight"]
    assert label.shape[-1] == case.inputs["logits"].shape[-1] * case.config["up"]
    results = {}
    for i, (threshold, min_kept) in enumerate(case.config["settings"]):
        logits = case.inputs["logits"].clone().requires_grad_()
        loss = ohem_cross_entropy(logits, label, Ohem(threshold, min_kept), weights)
        loss.backward()
        results |= {f"out.loss.{i}": loss, f"grad.in.logits.{i}": logits.grad}
    logits = case.inputs["logits"].clone().requires_grad_()
    loss = cross_entropy(logits, label, weights)
    loss.backward()
    return results | {"out.plain_ce": loss, "grad.in.logits.plain": logits.grad}


def toy(case: Case, stride: int) -> Predict:
    """The recorded network: two convolutions, and its logits at the size of the images."""
    state = case.state

    def predict(images: Tensor) -> list[Tensor]:
        x = F.conv2d(images, state["c1.weight"], state["c1.bias"], stride, 1).relu()
        return [resize(F.conv2d(x, state["c2.weight"], state["c2.bias"], padding=1), images.shape[-2:])]

    return predict


def slide_inference(case: Case) -> dict[str, Tensor]:
    sizes = []
    predict = toy(case, stride=2)

    def noted(window: Tensor) -> list[Tensor]:
        sizes.append(window.shape[-2:])
        return predict(window)

    (logits,) = sliding_window(noted, case.inputs["image"], case.config["crop"], case.config["stride"])
    return {"out.logits": logits, "out.window_sizes": torch.tensor(sizes)}


def multiscale_flip_inference(case: Case) -> dict[str, Tensor]:
    config = case.config
    (scores,) = multi_scale(
        toy(case, stride=4),
        case.inputs["image"],
        config["scales"],
        config["flip"],
        "exp_logits",
        base=config["base"],
        crop=config["crop"],
    )
    return {"out.pred": scores}


CASES = {
    "confusion_miou": confusion_miou,
    "ohem_ce": ohem_ce,
    "slide_inference": slide_inference,
    "multiscale_flip_inference": multiscale_flip_inference,
}
