"""FCOS on any timm backbone: every cell inside of an object tells the distances to its four sides.

Reference: "FCOS: Fully Convolutional One-Stage Object Detection", arXiv 1904.01355 and 2006.09214.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from models.compute import has_values
from models.detectors.anchors import flatten_outputs, grid
from models.detectors.pyramid_detector import Candidates, PyramidDetector, Size, detections
from models.mistakes import Mistake
from models.processes import process_mean

# A level answers for objects whose farthest side is 4 to 8 cells away; the first and last level for all beyond.
NEAR_CELLS, FAR_CELLS = 4, 8
# Cells around an object's centre that answer for it.
RADIUS = 1.5


class FCOS(PyramidDetector):
    """Anchor-free dense detector with centre sampling and centre-ness.

    In training, `forward(images, targets)` returns `cls`, `box` and `centre`, scalars; in evaluation, detections with
    scores sqrt(class * centre-ness).

    Args:
        backbone: timm's name of a network with at least three maps, strides 8 to 32 the last ones.
        num_classes: Labels are 0 to `num_classes - 1`.
        nms_threshold: See `PyramidDetector`.
        **kwargs: Further arguments of `PyramidDetector`; `fpn_chans` is a multiple of 32.

    Raises:
        Mistake: See `PyramidDetector`, or a width that 32 groups do not divide.
    """

    def __init__(self, backbone: str, num_classes: int, nms_threshold: float = 0.6, **kwargs: Any) -> None:
        super().__init__(
            backbone, num_classes, num_maps=3, extra="conv_on_pyramid", nms_threshold=nms_threshold, **kwargs
        )
        if self.fpn_chans % 32:
            raise Mistake(f"fpn_chans is a multiple of 32, the groups of FCOS's norms: not {self.fpn_chans}")
        self.head = FCOSHead(self.fpn_chans, 1, num_classes)
        if self.convention.adelaidet_fcos:
            self.scales = nn.Parameter(torch.ones(len(self.strides)))

    def get_classifier(self) -> nn.Module:
        """The layers whose size depends on the classes: what fine-tuning for other classes does not load."""
        return self.head.classification_head.cls_logits

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
        logits, distances, centreness = self.outputs(levels)
        if not has_values(levels[0]):
            return []
        points = self.points(levels)
        if not self.training:
            outputs = (logits, distances, centreness)
            found = [
                self.candidates([[level[i] for level in part] for part in outputs], points, size)
                for i, size in enumerate(sizes)
            ]
            return detections(found, sizes, targets)
        if targets is None:
            raise Mistake("training needs targets: a dict of boxes and labels for each image")
        all_logits, all_distances, all_centreness = (torch.cat(part, 1) for part in (logits, distances, centreness))
        matches = self.match(points, targets)
        return self.losses(all_logits, all_distances, all_centreness, torch.cat(points), matches, targets)

    def outputs(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Class logits [B, n, K], distances to the sides [B, n, 4] in pixels and centre-ness [B, n], by level."""
        classify, regress = self.head.classification_head, self.head.regression_head
        logits, distances, centreness = [], [], []
        for i, (level, stride) in enumerate(zip(levels, self.strides, strict=True)):
            logits.append(flatten_outputs(classify.cls_logits(classify.conv(level)), self.num_classes).float())
            features = regress.conv(level)
            sides = flatten_outputs(regress.bbox_reg(features), 4).float()
            if self.convention.adelaidet_fcos:
                sides = sides * self.scales[i]
            distances.append(sides.relu() * stride)
            centreness.append(flatten_outputs(regress.bbox_ctrness(features), 1).float().squeeze(-1))
        return logits, distances, centreness

    def points(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Where the cells of every level are [n, 2], x and y in pixels."""
        points = []
        for level, stride in zip(levels, self.strides, strict=True):
            corners = grid((level.shape[-2], level.shape[-1]), stride, level)
            points.append(corners + stride // 2 if self.convention.adelaidet_fcos else corners)
        return points

    def match(self, points: Sequence[Tensor], targets: Sequence[dict[str, Any]]) -> list[Tensor]:
        """The object that each point answers for: the smallest of those that suit its level and that it is central in.

        Args:
            points: Points (x, y) [n, 2], one tensor a level.
            targets: With `boxes`.

        Returns:
            For each image [N], index of an object or -1.
        """
        every = torch.cat(list(points))
        stride = torch.cat([p.new_full((len(p),), float(s)) for p, s in zip(points, self.strides, strict=True)])
        least, most = NEAR_CELLS * stride, FAR_CELLS * stride
        least[: len(points[0])] = 0
        most[-len(points[-1]) :] = torch.inf
        matches = []
        for target in targets:
            boxes = target["boxes"].float()
            if not len(boxes):
                matches.append(torch.full((len(every),), -1, device=every.device))
                continue
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            near = ((every[:, None] - centres).abs() < RADIUS * stride[:, None, None]).all(-1)
            sides = _sides(every[:, None], boxes)
            farthest = sides.amax(-1)
            fits = near & (sides.amin(-1) > 0) & (farthest > least[:, None]) & (farthest < most[:, None])
            area = (boxes[:, 2:] - boxes[:, :2]).prod(1).expand_as(fits)
            smallest, index = area.masked_fill(~fits, torch.inf).min(1)
            matches.append(torch.where(smallest.isfinite(), index, -1))
        return matches

    def losses(
        self,
        logits: Tensor,
        distances: Tensor,
        centreness: Tensor,
        points: Tensor,
        matches: Sequence[Tensor],
        targets: Sequence[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Focal loss of all points; generalised IoU and centre-ness of the positive ones.

        Args:
            logits: [B, N, num_classes].
            distances: [B, N, 4], in pixels.
            centreness: [B, N].
            points: [N, 2].
            matches: What `match` returned.
            targets: With `boxes` and `labels`.

        Returns:
            `cls`, `box` and `centre`, scalars.
        """
        image, place = torch.where(torch.stack(list(matches)) >= 0)
        truth = torch.zeros_like(logits)
        wanted = []
        for i, (index, target) in enumerate(zip(matches, targets, strict=True)):
            positive = torch.where(index >= 0)[0]
            truth[i, positive, target["labels"][index[positive]]] = 1
            wanted.append(target["boxes"].float()[index[positive]])
        boxes, where = torch.cat(wanted), points[place]
        left, top, right, bottom = _sides(where, boxes).unbind(-1)
        horizontal = torch.minimum(left, right) / torch.maximum(left, right)
        vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
        central = (horizontal * vertical).sqrt()
        giou = generalized_box_iou_loss(_box(where, distances[image, place]), boxes)
        if self.convention.adelaidet_fcos:
            giou = giou * central
            counts = torch.stack([central.new_tensor(len(place)), central.sum()])
            count, box_count = process_mean(counts, central.device).unbind()
            count, box_count = count.clamp(min=1), box_count.clamp(min=1e-6)
        else:
            count = box_count = process_mean(float(len(place)), central.device).clamp(min=1)
        known = F.binary_cross_entropy_with_logits(centreness[image, place], central, reduction="sum")
        return {
            "cls": sigmoid_focal_loss(logits, truth, alpha=0.25, gamma=2.0, reduction="sum") / count,
            "box": giou.sum() / box_count,
            "centre": known / count,
        }

    def candidates(self, outputs: Sequence[Sequence[Tensor]], points: Sequence[Tensor], size: Size) -> Candidates:
        """Detections of an image, best first, in pixels of the input image.

        Args:
            outputs: Logits [n, num_classes], distances [n, 4] and centre-ness [n], each of every level.
            points: Points (x, y) [n, 2], one tensor a level.
            size: Height and width of the image.
        """
        found = []
        for logits, distances, centreness, where in zip(*outputs, points, strict=True):
            scores = (logits.sigmoid() * centreness.sigmoid()[:, None]).sqrt()
            best, places, labels = self.best_of_level(scores)
            found.append(Candidates(_box(where[places], distances[places]), best, labels))
        merged = Candidates(*(torch.cat(values) for values in zip(*found, strict=True)))
        return self.suppress(merged, size, self.convention.least_dense_detection)


def _sides(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances from points [..., 2] to the left, top, right and bottom of boxes [..., 4]."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def _box(points: Tensor, distances: Tensor) -> Tensor:
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)
