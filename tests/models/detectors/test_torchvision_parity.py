"""With torchvision's convention and weights, our detectors are torchvision's: same losses, same detections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as tv
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from models.detectors.fcos import FCOS
from models.detectors.rcnn import FasterRCNN, MaskRCNN
from models.detectors.retinanet import RetinaNet
from models.official import load
from models.official.torchvision_detectors import LAYOUT

# Every stride divides both sides: torchvision takes the ratio of image to map for the stride.
SIZE = (128, 256)
CLASSES = 5
CHANS = 32
FAINT = 0.02
BACKBONE = {
    "backbone": "resnet26",
    "options": {"channels": (8, 8, 16, 16)},
    "fpn_chans": CHANS,
    "convention": "torchvision",
    "frozen_stages": 0,
}
NO_TRANSFORM = {"min_size": SIZE[0], "max_size": SIZE[1], "image_mean": [0.0] * 3, "image_std": [1.0] * 3}


class Pyramid(nn.Module):
    """Our body under torchvision's pyramid."""

    def __init__(self, body: nn.Module, chans: list[int], extra: nn.Module) -> None:
        super().__init__()
        self.body, self.out_channels = body, CHANS
        self.fpn = tv.backbone_utils.FeaturePyramidNetwork(chans, CHANS, extra_blocks=extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): feature for i, feature in enumerate(self.body(images))})


def pair(kind: str) -> tuple[nn.Module, nn.Module]:
    """Ours and torchvision's, with equal weights."""
    torch.manual_seed(0)
    two_stage = {"faster": FasterRCNN, "mask": MaskRCNN}
    if kind in two_stage:
        ours = two_stage[kind](num_classes=CLASSES, zero_is_background=True, fc_dim=32, max_detections=30, **BACKBONE)
        backbone = Pyramid(ours.backbone.body, ours.backbone.channels, LastLevelMaxPool())
        anchors = AnchorGenerator(tuple((8 * stride,) for stride in ours.strides), ((0.5, 1.0, 2.0),) * 5)
        heads: dict[str, Any] = {
            "rpn_anchor_generator": anchors,
            "box_head": tv.faster_rcnn.TwoMLPHead(CHANS * 49, 32),
            "box_predictor": tv.faster_rcnn.FastRCNNPredictor(32, CLASSES),
        }
        if kind == "mask":
            heads |= {
                "mask_head": tv.mask_rcnn.MaskRCNNHeads(CHANS, (CHANS,) * 4, 1),
                "mask_predictor": tv.mask_rcnn.MaskRCNNPredictor(CHANS, CHANS, CLASSES),
            }
        theirs = (tv.MaskRCNN if kind == "mask" else tv.FasterRCNN)(
            backbone, box_detections_per_img=30, **NO_TRANSFORM, **heads
        )
        # Every anchor and every proposal is drawn: nothing is random.
        ours.rpn.drawn = ours.roi_heads[0].drawn = theirs.rpn.fg_bg_sampler.batch_size_per_image = 1 << 20
        theirs.roi_heads.fg_bg_sampler.batch_size_per_image = 1 << 20
    else:
        ours = {"retinanet": RetinaNet, "fcos": FCOS}[kind](num_classes=CLASSES, max_detections=30, **BACKBONE)
        backbone = Pyramid(ours.backbone.body, ours.backbone.channels, LastLevelP6P7(CHANS, CHANS))
        theirs = {"retinanet": tv.RetinaNet, "fcos": tv.FCOS}[kind](
            backbone, CLASSES, score_thresh=0.05, detections_per_img=30, **NO_TRANSFORM
        )
    if kind == "retinanet":
        nn.init.zeros_(theirs.head.classification_head.cls_logits.bias)
    for module in theirs.modules():
        # As initialised, all scores are alike and low.
        if isinstance(module, nn.Conv2d | nn.Linear) and module not in set(ours.backbone.body.modules()):
            nn.init.normal_(module.weight, std=1.2 / module.weight[0].numel() ** 0.5)
    load(ours, LAYOUT.to_ours(theirs.state_dict()))
    return ours, theirs


@pytest.fixture(scope="module", params=["faster", "mask", "retinanet", "fcos"])
def detectors(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    return pair(request.param)


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    # So faint that no score is saturated.
    images = list(torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1)) * FAINT)
    boxes = torch.tensor([[10.0, 12.0, 60.0, 70.0], [40.0, 8.0, 120.0, 90.0], [3.0, 30.0, 24.0, 55.0]])
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long(), strict=True):
        mask[y0 : (y0 + 2 * y1) // 3, x0:x1] = True
    filled = {"boxes": boxes, "labels": torch.tensor([1, 3, 4]), "masks": masks}
    empty = {"boxes": boxes[:0], "labels": filled["labels"][:0], "masks": masks[:0]}
    return images, [filled, empty]


def test_detections_are_torchvisions(detectors: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (network.eval() for network in detectors)
    images, _ = batch()
    with torch.no_grad():
        found, expected = ours(images), theirs(images)
    for mine, reference in zip(found, expected, strict=True):
        assert len(reference["scores"]) > 5
        assert torch.equal(mine["labels"], reference["labels"])
        torch.testing.assert_close(mine["scores"], reference["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine["boxes"], reference["boxes"], rtol=1e-4, atol=1e-3)
        if ours.has_masks:
            # They round boxes to pixels before they paste masks; we do not.
            assert mine["masks"].dtype == torch.bool
            differing = (mine["masks"] != (reference["masks"][:, 0] >= 0.5)).float().mean()
            assert differing < 0.05


def test_losses_are_torchvisions(detectors: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (network.train() for network in detectors)
    images, targets = batch()
    found, expected = ours(images, targets), theirs(images, targets)
    names = {
        "rpn_cls": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "cls": "loss_classifier" if "loss_classifier" in expected else "classification",
        "box": "loss_box_reg" if "loss_box_reg" in expected else "bbox_regression",
        "mask": "loss_mask",
        "centre": "bbox_ctrness",
    }
    assert {names[name] for name in found} == expected.keys()
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[names[name]].item(), rel=1e-4)
