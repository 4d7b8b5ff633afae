"""Heads on regions of interest: what is in a box, where exactly, and which of its pixels.

References: "Faster R-CNN", arXiv 1506.01497; "Mask R-CNN", arXiv 1703.06870; one stage of "Cascade R-CNN", arXiv
1712.00726.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss, roi_align

from models.detectors.assignment import LowQuality, match, sample
from models.detectors.box_deltas import decode, encode
from models.detectors.conventions import Convention
from models.detectors.pyramid_detector import Size
from models.mistakes import Mistake
from models.processes import process_mean

BoxHead = Literal["2fc", "4conv1fc"]
BoxLoss = Literal["l1", "giou"]
BOX_SIZE, MASK_SIZE = 7, 14
HEAD_CONVS = 4
DRAWN, POSITIVE_FRACTION = 512, 0.25
# A level serves regions of one to two times this many cells; the first and the last one also those beyond.
CELLS = 14


@dataclass(frozen=True)
class StageOptions:
    """What tells one stage from another.

    Args:
        threshold: Least overlap (IoU) of a positive region with its object.
        stds: What the deltas are divided by.
        weight: What the losses are multiplied by.
    """

    threshold: float = 0.5
    stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    weight: float = 1.0


class Regions(NamedTuple):
    """Regions of one training image: [n] rows, positive ones first.

    Attributes:
        boxes: [n, 4].
        classes: 0 for background, else 1 + class.
        objects: Index of the object of each positive region.
        given: Whether a region is an object's own box, which no later stage may see.
    """

    boxes: Tensor
    classes: Tensor
    objects: Tensor
    given: Tensor


class BoxPredictor(nn.Module):
    """Class logits, background first, and deltas for every class or for all together.

    Args:
        in_features: Width of the box head.
        num_classes: Without background.
        class_agnostic: Whether the classes share their deltas.
    """

    def __init__(self, in_features: int, num_classes: int, class_agnostic: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4 * (1 if class_agnostic else num_classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[R, in_features] to float32 logits [R, num_classes + 1] and deltas [R, num_classes or 1, 4]."""
        return self.cls_score(x).float(), self.bbox_pred(x).float().unflatten(1, (-1, 4))


class RoIStage(nn.Module):
    """One box head, with a mask head if asked for.

    Args:
        in_chans: Channels of the levels and of the convolutions.
        num_classes: Without background.
        strides: Pixels of the image per cell of the levels that are pooled, each twice the one before.
        convention: Whose rules.
        options: Overlap, scale of the deltas, weight.
        fc_dim: Width of the linear layers.
        box_head: `2fc`: two linear layers; `4conv1fc`: four convolutions with batch norm, one linear layer.
        class_agnostic: See `BoxPredictor`.
        box_loss: `l1`: distance of deltas (smooth, see `Convention`); `giou`: overlap of boxes, with weight 10.
        masks: Whether there is a mask head.
        low_quality: Whether an object takes the proposals that overlap it most although they overlap another more.

    Raises:
        Mistake: Unknown head or loss.
    """

    def __init__(
        self,
        in_chans: int,
        num_classes: int,
        strides: Sequence[int],
        convention: Convention,
        options: StageOptions,
        fc_dim: int,
        box_head: BoxHead,
        class_agnostic: bool,
        box_loss: BoxLoss,
        masks: bool,
        low_quality: bool,
    ) -> None:
        super().__init__()
        if box_head not in get_args(BoxHead) or box_loss not in get_args(BoxLoss):
            choices = f"{', '.join(get_args(BoxHead))} and {', '.join(get_args(BoxLoss))}"
            raise Mistake(f"unknown {box_head=} or {box_loss=}; there are {choices}")
        if box_head == "2fc":
            self.box_head: nn.Module = TwoMLPHead(in_chans * BOX_SIZE**2, fc_dim)
        else:
            self.box_head = FastRCNNConvFCHead(
                (in_chans, BOX_SIZE, BOX_SIZE), [in_chans] * HEAD_CONVS, [fc_dim], nn.BatchNorm2d
            )
        self.box_predictor = BoxPredictor(fc_dim, num_classes, class_agnostic)
        if masks:
            self.mask_head = MaskRCNNHeads(in_chans, [in_chans] * HEAD_CONVS, 1)
            self.mask_predictor = MaskRCNNPredictor(in_chans, in_chans, num_classes)
        self.strides = list(strides)
        self.convention = convention
        self.options = options
        self.box_loss = box_loss
        self.low_quality = low_quality
        self.drawn = DRAWN

    def boxes_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled regions [R, C, 7, 7] to logits [R, K + 1] and deltas [R, K or 1, 4]."""
        return self.box_predictor(self.box_head(x))

    def masks_of(self, x: Tensor) -> Tensor:
        """Pooled regions [R, C, 14, 14] to mask logits [R, K, 28, 28]."""
        return self.mask_predictor(self.mask_head(x)).float()

    def pool(self, levels: Sequence[Tensor], boxes: Sequence[Tensor], size: int) -> Tensor:
        """Regions, each from the level that suits its size ("Feature Pyramid Networks", equation 1).

        Args:
            levels: Maps [B, C, h_i, w_i], those of `strides` first.
            boxes: Regions [n, 4], one tensor an image.
            size: Height and width of the result.

        Returns:
            [R, C, size, size], R all regions in order.
        """
        images = torch.cat([torch.full_like(image[:, :1], i) for i, image in enumerate(boxes)])
        regions = torch.cat([images, torch.cat(list(boxes))], 1)
        side = (regions[:, 3:] - regions[:, 1:3]).prod(1).sqrt()
        level = (side / (CELLS * self.strides[0]) + 1e-6).log2().floor().clamp(0, len(self.strides) - 1)
        pooled = levels[0].new_zeros(regions.shape[0], levels[0].shape[1], size, size)
        ratio = 0 if self.convention.aligned else 2
        for i, (feature, stride) in enumerate(zip(levels, self.strides, strict=False)):
            index = torch.where(level == i)[0]
            # Half precision would round boxes by pixels.
            part = roi_align(
                feature.float(), regions[index].float(), size, 1 / stride, ratio, aligned=self.convention.aligned
            )
            pooled = pooled.index_copy(0, index, part.to(pooled))
        return pooled

    @torch.no_grad()
    def draw(self, proposals: Sequence[Tensor], targets: Sequence[dict[str, Any]]) -> list[Regions]:
        """Regions to train on: the proposals and the objects' own boxes, matched and sampled.

        Args:
            proposals: Boxes [n, 4], one tensor an image.
            targets: With `boxes` and `labels`.

        Returns:
            For each image.
        """
        regions = []
        for image_proposals, target in zip(proposals, targets, strict=True):
            objects = target["boxes"].to(image_proposals)
            boxes = torch.cat([objects, image_proposals])
            threshold = self.options.threshold
            quality: LowQuality = "every_best" if self.low_quality else "no"
            if self.convention.matches_given_boxes:
                matches = match(boxes, objects, threshold, threshold, quality)
            else:
                matches = match(image_proposals, objects, threshold, threshold, quality)
                matches = torch.cat([torch.arange(len(objects), device=boxes.device), matches])
            positive, background = sample(matches, self.drawn, POSITIVE_FRACTION)
            chosen = torch.cat([positive, background])
            classes = chosen.new_zeros(len(chosen))
            classes[: len(positive)] = target["labels"][matches[positive]] + 1
            regions.append(Regions(boxes[chosen], classes, matches[positive], chosen < len(objects)))
        return regions

    def box_losses(
        self, logits: Tensor, deltas: Tensor, regions: Sequence[Regions], targets: Sequence[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Losses of class and box, both divided by the mean number of regions of a process.

        Args:
            logits: [R, K + 1].
            deltas: [R, K or 1, 4].
            regions: Regions, one record an image, R together.
            targets: With `boxes`.

        Returns:
            `cls` and `box`, scalars, weighted.
        """
        classes = torch.cat([image.classes for image in regions])
        divisor = process_mean(float(len(classes)), logits.device).clamp(min=1)
        positive = torch.where(classes > 0)[0]
        boxes = torch.cat([image.boxes for image in regions])[positive]
        pairs = zip(regions, targets, strict=True)
        wanted = torch.cat([target["boxes"].to(boxes)[image.objects] for image, target in pairs])
        found = self._of_class(deltas[positive], classes[positive] - 1)
        if self.box_loss == "giou":
            decoded = decode(found, boxes, self.convention.clamps_shrinking, self.options.stds)
            distance = 10 * generalized_box_iou_loss(decoded, wanted, reduction="sum")
        else:
            truth = encode(wanted, boxes, self.options.stds)
            distance = F.smooth_l1_loss(found, truth, beta=self.convention.roi_beta, reduction="sum")
        cross_entropy = F.cross_entropy(logits, classes, reduction="sum")
        return {
            "cls": self.options.weight * cross_entropy / divisor,
            "box": self.options.weight * distance / divisor,
        }

    def mask_loss(
        self, levels: Sequence[Tensor], regions: Sequence[Regions], targets: Sequence[dict[str, Any]]
    ) -> Tensor:
        """Mean cross-entropy per pixel of the masks of positive regions, of their own class; weighted.

        Args:
            levels: Maps [B, C, h_i, w_i].
            regions: Regions, one record an image.
            targets: With `masks` [n, h, w].
        """
        positive = [image.boxes[: len(image.objects)] for image in regions]
        logits = self.masks_of(self.pool(levels, positive, MASK_SIZE))
        classes = torch.cat([image.classes[: len(image.objects)] for image in regions]) - 1
        side = logits.shape[-1]
        truths = []
        for image, boxes, target in zip(regions, positive, targets, strict=True):
            crops = torch.cat([image.objects[:, None].to(boxes), boxes], 1)
            ratio, aligned = (0, True) if self.convention.hard_masks else (-1, False)
            masks = target["masks"][:, None].to(boxes)
            truths.append(roi_align(masks, crops, side, sampling_ratio=ratio, aligned=aligned)[:, 0])
        truth = torch.cat(truths)
        if self.convention.hard_masks:
            truth = (truth >= 0.5).to(truth)
        found = logits[torch.arange(len(classes), device=classes.device), classes]
        loss = F.binary_cross_entropy_with_logits(found, truth, reduction="sum")
        return self.options.weight * loss / process_mean(float(truth.numel()), loss.device).clamp(min=1)

    @torch.no_grad()
    def refine(self, boxes: Sequence[Tensor], classes: Tensor, deltas: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
        """Boxes for the next stage: moved by the deltas of their class and clipped.

        Args:
            boxes: Regions [n, 4], one tensor an image, R together.
            classes: [R], without background.
            deltas: [R, K or 1, 4].
            sizes: Height and width of every image.

        Returns:
            Of each image [n, 4].
        """
        chosen = self._of_class(deltas, classes)
        moved = decode(chosen, torch.cat(list(boxes)), self.convention.clamps_shrinking, self.options.stds)
        parts = moved.split([image.shape[0] for image in boxes])
        return [clip_boxes_to_image(part, size) for part, size in zip(parts, sizes, strict=True)]

    @staticmethod
    def _of_class(deltas: Tensor, classes: Tensor) -> Tensor:
        if deltas.shape[1] == 1:
            return deltas[:, 0]
        return deltas[torch.arange(len(classes), device=classes.device), classes]
