"""Faster, Mask and Cascade Mask R-CNN on any timm backbone: proposals, then stages that classify and move them.

One network: Cascade R-CNN, of which the other two are the case of one stage.

References: "Faster R-CNN", arXiv 1506.01497; "Mask R-CNN", arXiv 1703.06870; "Cascade R-CNN", arXiv 1712.00726; the
ConvNeXt detectors: arXiv 2201.03545, section 3.3 and appendix A.3.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.compute import has_values
from models.detectors.box_deltas import decode
from models.detectors.conventions import Convention
from models.detectors.pyramid_detector import Candidates, PyramidDetector, Size, detections
from models.detectors.roi_stage import BOX_SIZE, MASK_SIZE, BoxHead, BoxLoss, Regions, RoIStage, StageOptions
from models.detectors.rpn import RPN
from models.mistakes import Mistake

POOLED_LEVELS = 4
CASCADE = (
    StageOptions(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    StageOptions(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    StageOptions(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)
# For counting, as in the published tables: regions per stage, and those of them that get a mask.
COUNTED_REGIONS, COUNTED_MASKS = 1000, 100


class RCNN(PyramidDetector):
    """Region proposals and a cascade of heads.

    In training, `forward(images, targets)` returns weighted scalar losses: `rpn_cls`, `rpn_box`, and `cls`, `box`,
    `mask` of the stages (`cls_0`, ... if there are several). In evaluation, it returns detections (see `detections`).

    Args:
        backbone: timm's name of a network with at least four maps, strides 4 to 32 the last ones.
        num_classes: Labels are 0 to `num_classes - 1`.
        stages: What tells the stages apart, in order.
        masks: Whether there are mask heads.
        box_head, class_agnostic, box_loss, fc_dim: The same for every stage, see `RoIStage`.
        rpn_beta, rpn_inside_only, proposals: See `RPN`.
        zero_is_background: Labels are numbers from 1 on, such as COCO's raw category ids, and 0 is never used; the
            classifier then has `num_classes` logits and not one more, as torchvision's checkpoints have.
        convention: See `PyramidDetector`.
        **kwargs: Further arguments of `PyramidDetector`.

    Raises:
        Mistake: See `PyramidDetector`.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        stages: Sequence[StageOptions],
        masks: bool,
        box_head: BoxHead = "2fc",
        class_agnostic: bool = False,
        box_loss: BoxLoss = "l1",
        fc_dim: int = 1024,
        rpn_beta: float | None = None,
        rpn_inside_only: bool = False,
        proposals: int | None = None,
        zero_is_background: bool = False,
        convention: str | Convention = "mmdet",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, num_classes, num_maps=POOLED_LEVELS, extra="pool", convention=convention, **kwargs)
        self.has_masks = masks
        # Label of the first class that is not background.
        self.first_label = int(zero_is_background)
        if num_classes <= self.first_label:
            raise Mistake(f"num_classes counts the unused label 0 too, so it is at least 2, not {num_classes}")
        self.rpn = RPN(
            self.fpn_chans,
            self.strides,
            self.convention,
            self.backbone.size_divisor,
            beta=rpn_beta,
            inside_only=rpn_inside_only,
            proposals=proposals,
        )
        low_quality = masks and len(stages) == 1 and self.convention.mask_low_quality
        self.roi_heads = nn.ModuleList(
            RoIStage(
                self.fpn_chans,
                num_classes - self.first_label,
                self.strides[:POOLED_LEVELS],
                self.convention,
                stage,
                fc_dim=fc_dim,
                box_head=box_head,
                class_agnostic=class_agnostic,
                box_loss=box_loss,
                masks=masks,
                low_quality=low_quality,
            )
            for stage in stages
        )

    def forward(self, images: Sequence[Tensor], targets: Sequence[dict[str, Any]] | None = None) -> Any:
        """Losses in training, detections in evaluation.

        Args:
            images: B normalised images [3, h, w] of any sizes.
            targets: In training `boxes` [n, 4] (x1 y1 x2 y2 in pixels), `labels` [n], and `masks` bool [n, h, w] if the
                network has masks. In evaluation only `original_size` is read, where given.

        Returns:
            Dict of weighted scalar losses, or a dict of detections for each image.

        Raises:
            Mistake: Training without targets.
        """
        levels, sizes = self.levels(images)
        if not has_values(levels[0]):
            return self._all_work(levels)
        if not self.training:
            proposals, _ = self.rpn(levels, sizes)
            return self.detections(levels, sizes, proposals, targets)
        if targets is None:
            raise Mistake("training needs targets: a dict of boxes and labels for each image")
        targets = self.classes_of(targets)
        proposals, losses = self.rpn(levels, sizes, targets)
        return losses | self.losses(levels, sizes, proposals, targets)

    def get_classifier(self) -> nn.Module:
        """The layers whose size depends on the classes: what fine-tuning for other classes does not load."""
        stages = list(self.stages())
        masks = [stage.mask_predictor for stage in stages if self.has_masks]
        return nn.ModuleList([*(stage.box_predictor for stage in stages), *masks])

    def classes_of(self, targets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Targets with labels that count classes from 0."""
        return [target | {"labels": target["labels"] - self.first_label} for target in targets]

    def losses(
        self,
        levels: Sequence[Tensor],
        sizes: Sequence[Size],
        proposals: Sequence[Tensor],
        targets: Sequence[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Losses of all stages; each trains on what the one before made of the proposals.

        Args:
            levels: Maps [B, C, h_i, w_i].
            sizes: Height and width of every image.
            proposals: Boxes [n, 4], one tensor an image.
            targets: With labels that count classes from 0.
        """
        losses: dict[str, Tensor] = {}
        for i, stage in enumerate(self.stages()):
            regions = stage.draw(proposals, targets)
            boxes = [image.boxes for image in regions]
            logits, deltas = stage.boxes_of(stage.pool(levels, boxes, BOX_SIZE))
            terms = stage.box_losses(logits, deltas, regions, targets)
            if self.has_masks:
                terms["mask"] = stage.mask_loss(levels, regions, targets)
            suffix = f"_{i}" if len(self.roi_heads) > 1 else ""
            losses |= {f"{name}{suffix}": value for name, value in terms.items()}
            if i + 1 < len(self.roi_heads):
                proposals = _refined(stage, regions, logits, deltas, sizes)
        return losses

    def detections(
        self,
        levels: Sequence[Tensor],
        sizes: Sequence[Size],
        proposals: Sequence[Tensor],
        targets: Sequence[dict[str, Any]] | None,
    ) -> list[dict[str, Tensor]]:
        """Detections of every image from its proposals; see `forward`."""
        found = self.candidates(levels, sizes, proposals)
        masks = self.mask_probabilities(levels, found) if self.has_masks else None
        labelled = [image._replace(labels=image.labels + self.first_label) for image in found]
        return detections(labelled, sizes, targets, masks)

    def candidates(
        self, levels: Sequence[Tensor], sizes: Sequence[Size], proposals: Sequence[Tensor]
    ) -> list[Candidates]:
        """Boxes of the last stage with the softmax of the mean logits of all stages, after suppression.

        Args:
            levels: Maps [B, C, h_i, w_i].
            sizes: Height and width of every image.
            proposals: Boxes [n, 4], one tensor an image.

        Returns:
            For each image, best first, in pixels of the input image.
        """
        boxes, every = list(proposals), []
        for i, stage in enumerate(self.stages()):
            logits, deltas = stage.boxes_of(stage.pool(levels, boxes, BOX_SIZE))
            every.append(logits)
            if i + 1 < len(self.roi_heads):
                boxes = stage.refine(boxes, logits[:, 1:].argmax(1), deltas, sizes)
        counts = [image.shape[0] for image in boxes]
        moved = decode(deltas, torch.cat(boxes)[:, None], self.convention.clamps_shrinking, stage.options.stds)
        scores = torch.stack(every).mean(0).softmax(1)[:, 1:]
        moved = moved.expand(-1, scores.shape[1], -1)
        found = []
        for image_boxes, image_scores, size in zip(moved.split(counts), scores.split(counts), sizes, strict=True):
            box, label = torch.where(image_scores > self.score_threshold)
            candidates = Candidates(image_boxes[box, label], image_scores[box, label], label)
            found.append(self.suppress(candidates, size, self.convention.least_detection))
        return found

    def mask_probabilities(self, levels: Sequence[Tensor], found: Sequence[Candidates]) -> list[Tensor]:
        """Probability of every cell of a mask, the mean over the stages.

        Args:
            levels: Maps [B, C, h_i, w_i].
            found: Candidates, one record an image, in pixels of the input image.

        Returns:
            For each image [n, 28, 28].
        """
        labels = torch.cat([image.labels for image in found])
        rows = torch.arange(labels.shape[0], device=labels.device)
        boxes = [image.boxes for image in found]
        stages = self.stages()
        every = [stage.masks_of(stage.pool(levels, boxes, MASK_SIZE))[rows, labels].sigmoid() for stage in stages]
        return list(torch.stack(every).mean(0).split([image.shape[0] for image in boxes]))

    def stages(self) -> list[RoIStage]:
        """The stages in order."""
        return [stage for stage in self.roi_heads if isinstance(stage, RoIStage)]

    def _all_work(self, levels: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What a network without data to decide by does: heads on a fixed number of regions."""
        self.rpn.head(list(levels))
        chans = levels[0].shape[1]
        for stage in self.stages():
            stage.boxes_of(levels[0].new_zeros(COUNTED_REGIONS, chans, BOX_SIZE, BOX_SIZE))
            if self.has_masks:
                stage.masks_of(levels[0].new_zeros(COUNTED_MASKS, chans, MASK_SIZE, MASK_SIZE))
        return []


def _refined(
    stage: RoIStage, regions: Sequence[Regions], logits: Tensor, deltas: Tensor, sizes: Sequence[Size]
) -> list[Tensor]:
    """Proposals for the next stage; the objects' own boxes, which are added at every stage, leave."""
    classes = torch.cat([image.classes for image in regions])
    classes = torch.where(classes > 0, classes - 1, logits[:, 1:].argmax(1))
    boxes = stage.refine([image.boxes for image in regions], classes, deltas, sizes)
    return [image_boxes[~image.given] for image_boxes, image in zip(boxes, regions, strict=True)]


class FasterRCNN(RCNN):
    """Faster R-CNN with a feature pyramid (arXiv 1506.01497, 1612.03144).

    Args:
        backbone: See `RCNN`.
        num_classes: See `RCNN`.
        **kwargs: Further arguments of `RCNN`.
    """

    def __init__(self, backbone: str, num_classes: int, **kwargs: Any) -> None:
        super().__init__(backbone, num_classes, (StageOptions(),), masks=False, **kwargs)


class MaskRCNN(RCNN):
    """Mask R-CNN with a feature pyramid (arXiv 1703.06870).

    Args:
        backbone: See `RCNN`.
        num_classes: See `RCNN`.
        **kwargs: Further arguments of `RCNN`.
    """

    def __init__(self, backbone: str, num_classes: int, **kwargs: Any) -> None:
        super().__init__(backbone, num_classes, (StageOptions(),), masks=True, **kwargs)


class CascadeMaskRCNN(RCNN):
    """Cascade Mask R-CNN of three stages (arXiv 1712.00726), as ConvNeXt is published with it (arXiv 2201.03545).

    Args:
        backbone: See `RCNN`.
        num_classes: See `RCNN`.
        box_head, box_loss: See `RoIStage`.
        rpn_beta, rpn_inside_only, proposals: See `RPN`.
        **kwargs: Further arguments of `RCNN`.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        box_head: BoxHead = "4conv1fc",
        box_loss: BoxLoss = "giou",
        rpn_beta: float | None = 1 / 9,
        rpn_inside_only: bool = True,
        proposals: int | None = 2000,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            backbone,
            num_classes,
            CASCADE,
            masks=True,
            box_head=box_head,
            box_loss=box_loss,
            rpn_beta=rpn_beta,
            rpn_inside_only=rpn_inside_only,
            proposals=proposals,
            **kwargs,
        )
