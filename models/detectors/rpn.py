"""Region proposal network: boxes that may hold an object of any kind.

Reference: "Faster R-CNN", arXiv 1506.01497, section 3.1; on a pyramid: arXiv 1612.03144, section 4.1.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from models.detectors.anchors import RATIOS, anchors, flatten_outputs
from models.detectors.assignment import IGNORED, LowQuality, match, sample
from models.detectors.box_deltas import decode, encode
from models.detectors.conventions import Convention
from models.detectors.pyramid_detector import Size
from models.detectors.suppression import suppressed
from models.processes import process_mean

# Sides of the square anchor, in cells of its level: 32 pixels at stride 4.
CELLS = 8
POSITIVE, NEGATIVE = 0.7, 0.3
DRAWN, POSITIVE_FRACTION = 256, 0.5


class RPN(nn.Module):
    """Scores three anchors per cell of every level and moves them onto objects.

    Args:
        in_chans: Channels of the levels.
        strides: Pixels of the image per cell, one a level.
        convention: Whose rules.
        size_divisor: Number up to whose multiples images are padded.
        beta: Width of the quadratic part of the smooth L1 loss of boxes; None for the convention's.
        inside_only: Whether anchors that reach over the edge of their image are left out of the loss.
        proposals: Proposals per training image; None for the convention's.
    """

    def __init__(
        self,
        in_chans: int,
        strides: Sequence[int],
        convention: Convention,
        size_divisor: int,
        beta: float | None = None,
        inside_only: bool = False,
        proposals: int | None = None,
    ) -> None:
        super().__init__()
        self.head = RPNHead(in_chans, len(RATIOS))
        self.strides = list(strides)
        self.convention = convention
        self.size_divisor = size_divisor
        self.beta = convention.rpn_beta if beta is None else beta
        self.inside_only = inside_only
        trained, tested = convention.proposals_after
        self.kept = (trained if proposals is None else proposals, tested)
        self.nms_threshold = 0.7
        self.drawn = DRAWN

    def forward(
        self, levels: Sequence[Tensor], sizes: Sequence[Size], targets: Sequence[dict[str, Any]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals, and in training the losses.

        Args:
            levels: Maps [B, in_chans, h_i, w_i].
            sizes: Height and width of every image.
            targets: In training, with `boxes`.

        Returns:
            For each image boxes [n, 4] (best first), and `rpn_cls` and `rpn_box`.
        """
        logits, deltas = self.head(list(levels))
        boxes = anchors(levels, self.strides, [(CELLS * stride,) for stride in self.strides], self.convention)
        flat_logits = [flatten_outputs(level, 1).squeeze(-1) for level in logits]
        flat_deltas = [flatten_outputs(level, 4) for level in deltas]
        losses = {}
        if targets is not None:
            losses = self.losses(torch.cat(flat_logits, 1), torch.cat(flat_deltas, 1), torch.cat(boxes), sizes, targets)
        return [found for found, _ in self.propose(flat_logits, flat_deltas, boxes, sizes)], losses

    @torch.no_grad()
    def propose(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], boxes: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[tuple[Tensor, Tensor]]:
        """The best anchors of each level, moved, without those that overlap much.

        Args:
            logits: Scores before a sigmoid [B, n], one tensor a level.
            deltas: Moves of the anchors [B, n, 4], one tensor a level.
            boxes: Anchors of each level [n, 4].
            sizes: Height and width of every image.

        Returns:
            For each image boxes [m, 4] and scores [m], best first.
        """
        mode = 0 if self.training else 1
        found, scores, origins = [], [], []
        for i, (level_logits, level_deltas, level_boxes) in enumerate(zip(logits, deltas, boxes, strict=True)):
            best, index = level_logits.float().topk(
                torch.sym_min(self.convention.proposals_before[mode], level_boxes.shape[0])
            )
            chosen = level_deltas.take_along_dim(index[..., None], 1)
            found.append(decode(chosen, level_boxes[index], self.convention.clamps_shrinking))
            scores.append(best.sigmoid())
            origins.append(torch.full_like(index, i))
        proposals = []
        for image in zip(torch.cat(found, 1), torch.cat(scores, 1), torch.cat(origins, 1), sizes, strict=True):
            image_boxes, image_scores, level, size = image
            image_boxes = clip_boxes_to_image(image_boxes, size)
            if self.convention.least_proposal > 0:
                large = remove_small_boxes(image_boxes, self.convention.least_proposal)
                image_boxes, image_scores, level = image_boxes[large], image_scores[large], level[large]
            kept = suppressed(image_boxes, image_scores, level, self.nms_threshold)[: self.kept[mode]]
            proposals.append((image_boxes[kept], image_scores[kept]))
        return proposals

    def losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        boxes: Tensor,
        sizes: Sequence[Size],
        targets: Sequence[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Cross-entropy of the drawn anchors and smooth L1 of the positive ones.

        Args:
            logits: [B, N].
            deltas: [B, N, 4].
            boxes: Anchors [N, 4].
            sizes: Height and width of every image.
            targets: With `boxes`.

        Returns:
            `rpn_cls` and `rpn_box`, scalars.
        """
        rule = self.convention
        cross_entropy = distance = logits.new_zeros((), dtype=torch.float32)
        drawn = 0
        logits, deltas = logits.float(), deltas.float()
        for image_logits, image_deltas, size, target in zip(logits, deltas, sizes, targets, strict=True):
            objects = target["boxes"]
            usable = self._usable(boxes, size)
            matches = torch.full((len(boxes),), IGNORED, device=boxes.device)
            low_quality: LowQuality = "every_best" if rule.takes_every_best else "first_choice"
            matches[usable] = match(boxes[usable], objects, POSITIVE, NEGATIVE, low_quality)
            positive, background = sample(matches, self.drawn, POSITIVE_FRACTION)
            chosen = image_logits[torch.cat([positive, background])]
            truth = torch.zeros_like(chosen)
            truth[: len(positive)] = 1
            cross_entropy = cross_entropy + F.binary_cross_entropy_with_logits(chosen, truth, reduction="sum")
            wanted = encode(objects[matches[positive]], boxes[positive])
            distance = distance + F.smooth_l1_loss(image_deltas[positive], wanted, beta=self.beta, reduction="sum")
            drawn += len(chosen)
        counted = drawn if rule.rpn_counts_drawn else self.drawn * len(targets)
        divisor = process_mean(float(counted), distance.device).clamp(min=1)
        return {"rpn_cls": cross_entropy / divisor, "rpn_box": distance / divisor}

    def _usable(self, boxes: Tensor, size: Size) -> Tensor:
        height, width = size
        if self.inside_only:
            limit = boxes.new_tensor([width, height])
            return (boxes[:, :2] >= 0).all(1) & (boxes[:, 2:] < limit).all(1)
        if self.convention.ignores_padding:
            divisor = self.size_divisor
            limit = boxes.new_tensor([width + -width % divisor, height + -height % divisor])
            return ((boxes[:, :2] + boxes[:, 2:]) / 2 < limit).all(1)
        return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
