"""RetinaNet on any timm backbone: one classifier and one box regressor over nine anchors per cell.

Reference: "Focal Loss for Dense Object Detection", arXiv 1708.02002.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, sigmoid_focal_loss

from models.compute import has_values
from models.detectors.anchors import RATIOS, anchors, flatten_outputs
from models.detectors.assignment import BACKGROUND, IGNORED, LowQuality, match
from models.detectors.box_deltas import decode, encode
from models.detectors.conventions import Convention
from models.detectors.conventions import convention as convention_of
from models.detectors.pyramid_detector import Candidates, PyramidDetector, Size, detections
from models.mistakes import Mistake
from models.processes import process_mean

# Sides of the square anchors in cells of their level: from 32 pixels at stride 8.
CELLS = tuple(4 * 2 ** (third / 3) for third in range(3))
ANCHORS_PER_CELL = len(CELLS) * len(RATIOS)
POSITIVE, NEGATIVE = 0.5, 0.4
PRIOR = 0.01
# Of the moving average of the number of positive anchors.
MOMENTUM, START = 0.9, 100.0


class RetinaNetHead(nn.Module):
    """Two towers of convolutions, the same for all levels; torchvision's, of any depth.

    Args:
        in_chans: Channels of the levels and of the towers.
        num_classes: Classes.
        num_convs: Convolutions of each tower.
    """

    def __init__(self, in_chans: int, num_classes: int, num_convs: int) -> None:
        super().__init__()

        def tower(output: str, width: int) -> nn.ModuleDict:
            convs = [Conv2dNormActivation(in_chans, in_chans, norm_layer=None) for _ in range(num_convs)]
            last = nn.Conv2d(in_chans, ANCHORS_PER_CELL * width, 3, padding=1)
            return nn.ModuleDict({"conv": nn.Sequential(*convs), output: last})

        self.classification_head = tower("cls_logits", num_classes)
        self.regression_head = tower("bbox_reg", 4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        # Every anchor starts as an object with this probability.
        self.classification_head["cls_logits"].get_parameter("bias").data.fill_(-math.log((1 - PRIOR) / PRIOR))

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps [B, C, h, w] to logits [B, 9 * num_classes, h, w] and deltas [B, 36, h, w] of every level."""
        classify, regress = self.classification_head, self.regression_head
        logits = [classify["cls_logits"](classify["conv"](level)) for level in levels]
        return logits, [regress["bbox_reg"](regress["conv"](level)) for level in levels]


class RetinaNet(PyramidDetector):
    """Dense detector with focal loss.

    In training, `forward(images, targets)` returns `cls` and `box`, scalars; in evaluation, detections.

    Args:
        backbone: timm's name of a network with at least three maps, strides 8 to 32 the last ones.
        num_classes: Labels are 0 to `num_classes - 1`.
        num_convs: Convolutions of each tower of the head.
        convention: See `PyramidDetector`.
        **kwargs: Further arguments of `PyramidDetector`.

    Attributes:
        positives: Moving average of the number of positive anchors of a batch; with detectron2's convention only.

    Raises:
        Mistake: See `PyramidDetector`.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        num_convs: int = 4,
        convention: str | Convention = "detectron2",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone,
            num_classes,
            num_maps=3,
            extra="conv_on_backbone" if convention_of(convention).p6_on_backbone else "conv_on_pyramid",
            convention=convention,
            **kwargs,
        )
        self.head = RetinaNetHead(self.fpn_chans, num_classes, num_convs)
        if self.convention.retinanet_divisor == "average":
            self.register_buffer("positives", torch.tensor(START))

    def get_classifier(self) -> nn.Module:
        """The layers whose size depends on the classes: what fine-tuning for other classes does not load."""
        return self.head.classification_head["cls_logits"]

    def forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Any]] | None = None) -> Any:
        """Losses in training, detections in evaluation.

        Args:
            images: B normalised images [3, h, w] of any sizes.
            targets: In training `boxes` [n, 4] (x1 y1 x2 y2 in pixels) and `labels` [n]. In evaluation only
                `original_size` is read, where given.

        Returns:
            Dict of scalar losses, or a dict of detections for each image.

        Raises:
            Mistake: Training without targets.
        """
        levels, sizes = self.levels(images)
        logits, deltas = self.head(levels)
        if not has_values(levels[0]):
            return []
        boxes = self.anchors(levels)
        flat_logits = [flatten_outputs(level, self.num_classes).float() for level in logits]
        flat_deltas = [flatten_outputs(level, 4).float() for level in deltas]
        if not self.training:
            found = [
                self.candidates([level[i] for level in flat_logits], [level[i] for level in flat_deltas], boxes, size)
                for i, size in enumerate(sizes)
            ]
            return detections(found, sizes, targets)
        if targets is None:
            raise Mistake("training needs targets: a dict of boxes and labels for each image")
        return self.losses(torch.cat(flat_logits, 1), torch.cat(flat_deltas, 1), torch.cat(boxes), targets)

    def anchors(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of every level [h * w * 9, 4], in pixels."""
        sizes = [[cells * stride for cells in CELLS] for stride in self.strides]
        return anchors(levels, self.strides, sizes, self.convention)

    def match(self, boxes: Tensor, target: dict[str, Any]) -> Tensor:
        """The object that each anchor answers for; see `models.detectors.assignment.match`."""
        low_quality: LowQuality = "every_best" if self.convention.takes_every_best else "first_choice"
        return match(boxes, target["boxes"], POSITIVE, NEGATIVE, low_quality)

    def losses(
        self, logits: Tensor, deltas: Tensor, boxes: Tensor, targets: Sequence[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Focal loss of all anchors that are not ignored, and L1 of the positive ones.

        Args:
            logits: [B, N, num_classes].
            deltas: [B, N, 4].
            boxes: Anchors [N, 4].
            targets: With `boxes` and `labels`.

        Returns:
            `cls` and `box`, scalars.
        """
        focal, distance, counts = [], [], []
        for image_logits, image_deltas, target in zip(logits, deltas, targets, strict=True):
            matches = self.match(boxes, target)
            positive = torch.where(matches > BACKGROUND)[0]
            objects = matches[positive]
            truth = torch.zeros_like(image_logits)
            truth[positive, target["labels"][objects]] = 1
            per_anchor = sigmoid_focal_loss(image_logits, truth, alpha=0.25, gamma=2.0).sum(1)
            focal.append(per_anchor.masked_fill(matches == IGNORED, 0).sum())
            wanted = encode(target["boxes"][objects], boxes[positive])
            distance.append(F.l1_loss(image_deltas[positive], wanted, reduction="sum"))
            counts.append(len(positive))
        divisors = self._divisors(counts, logits)
        return {"cls": (torch.stack(focal) / divisors).sum(), "box": (torch.stack(distance) / divisors).sum()}

    def candidates(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], boxes: Sequence[Tensor], size: Size
    ) -> Candidates:
        """Detections of an image, best first, in pixels of the input image.

        Args:
            logits: Class logits [n, num_classes], one tensor a level.
            deltas: Moves of the anchors [n, 4], one tensor a level.
            boxes: Anchors [n, 4], one tensor a level.
            size: Height and width of the image.
        """
        found = []
        for level_logits, level_deltas, level_boxes in zip(logits, deltas, boxes, strict=True):
            scores, places, labels = self.best_of_level(level_logits.sigmoid())
            moved = decode(level_deltas[places], level_boxes[places], self.convention.clamps_shrinking)
            found.append(Candidates(moved, scores, labels))
        merged = Candidates(*(torch.cat(values) for values in zip(*found, strict=True)))
        return self.suppress(merged, size, self.convention.least_dense_detection)

    def _divisors(self, counts: Sequence[int], like: Tensor) -> Tensor:
        """What the losses of each image are divided by [B]."""
        rule = self.convention.retinanet_divisor
        if rule == "image":
            return like.new_tensor([max(count, 1) * len(counts) for count in counts])
        total = process_mean(float(sum(counts)), like.device).clamp(min=1)
        if rule == "average":
            positives = self.get_buffer("positives")
            positives.mul_(MOMENTUM).add_((1 - MOMENTUM) * total)
            # A later batch changes the buffer, possibly before this one's gradients are taken.
            return positives.clone().clamp(min=1).expand(len(counts))
        return total.expand(len(counts))
