"""What the detectors on a feature pyramid share: images to levels, and candidates to detections.

Reference: "Feature Pyramid Networks for Object Detection", arXiv 1612.03144.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from models.detectors.batching import pad
from models.detectors.conventions import Convention
from models.detectors.conventions import convention as convention_of
from models.detectors.features import Features
from models.detectors.suppression import suppressed
from models.layers.mask_paste import paste
from models.mistakes import Mistake
from models.necks import FPN, Extra, Neck

Size = tuple[int, int]


class Candidates(NamedTuple):
    """Scored boxes of one image: `boxes` [N, 4] in pixels of the input image, `scores` [N], `labels` [N]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> "Candidates":
        """The candidates at `index` (indices or bool)."""
        return Candidates(*(value[index] for value in self))


class PyramidDetector(nn.Module):
    """Backbone and neck; a subclass adds the heads.

    Args:
        backbone: timm's name of a network with `features_only`, ours included.
        num_classes: Labels are 0 to `num_classes - 1`.
        num_maps: How many of the backbone's maps, counted from the coarsest, go to the neck.
        extra: The neck's coarser levels (see `FPN`).
        neck: Builds the neck, from what `models.necks` says.
        options: Further arguments of `timm.create_model`.
        pretrained: Whether the backbone starts from timm's weights.
        fpn_chans: Channels of the levels and of the convolutions of the heads.
        output_norm: Layer norm on the backbone's maps, as the published ConvNeXt detectors have.
        frozen_norm: Whether batch norms of the backbone are constants.
        frozen_stages: How many of timm's maps are made by layers that do not train (see `Features`): 2 for the stem and
            first stage of a ResNet, 0 for none.
        convention: One of `CONVENTIONS`, by name, or a changed one.
        score_threshold: Least score of a detection.
        nms_threshold: Overlap (IoU) of two boxes of a class above which the lower-scored one is dropped.
        max_detections: Detections per image, at most.

    Attributes:
        strides: Pixels of the image per cell, of each level.

    Raises:
        Mistake: Unknown convention, no class, thresholds outside of [0, 1], strides that do not double, or a neck
            with fewer levels than maps.
    """

    has_masks = False

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        num_maps: int,
        extra: Extra,
        neck: Neck = FPN,
        options: dict[str, Any] | None = None,
        pretrained: bool = False,
        fpn_chans: int = 256,
        output_norm: bool = False,
        frozen_norm: bool = True,
        frozen_stages: int = 2,
        convention: str | Convention = "detectron2",
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise Mistake(f"num_classes is the number of kinds of objects, at least 1, not {num_classes}")
        if not (0 <= score_threshold <= 1 and 0 <= nms_threshold <= 1):
            raise Mistake(f"thresholds lie between 0 and 1: not {score_threshold=}, {nms_threshold=}")
        self.convention = convention_of(convention)
        self.num_classes = num_classes
        self.fpn_chans = fpn_chans
        self.score_threshold, self.nms_threshold, self.max_detections = score_threshold, nms_threshold, max_detections
        self.backbone = Features(
            backbone, options, pretrained, range(-num_maps, 0), frozen_norm=frozen_norm, frozen_stages=frozen_stages
        )
        self.strides = list(self.backbone.strides)
        if any(2 * a != b for a, b in pairwise(self.strides)):
            raise Mistake(f"the maps of {backbone} have strides {self.strides}: a pyramid needs them doubling")
        self.neck = neck(self.backbone.channels, fpn_chans, extra, output_norm)
        num_levels = getattr(self.neck, "num_levels", None)
        if not isinstance(num_levels, int) or num_levels < num_maps:
            raise Mistake(
                f"a neck states num_levels, here at least {num_maps}, one for each map: {type(self.neck).__name__} "
                f"states {num_levels}"
            )
        while len(self.strides) < num_levels:
            self.strides.append(2 * self.strides[-1])

    def levels(self, images: Sequence[Tensor]) -> tuple[list[Tensor], list[Size]]:
        """The pyramid of a batch.

        Args:
            images: B normalised images [3, h, w] of any sizes.

        Returns:
            Maps [B, fpn_chans, h_i, w_i], finest first, and height and width of every image.
        """
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, padding = pad(list(images))
        # Every map then has twice the cells of the next one.
        divisor = self.backbone.size_divisor
        margin = (0, -batch.shape[-1] % divisor, 0, -batch.shape[-2] % divisor)
        batch, padding = F.pad(batch, margin), F.pad(padding, margin, value=True)
        return self.neck([feature for feature, _ in self.backbone(batch, padding)]), sizes

    def suppress(self, candidates: Candidates, size: Size, least: float) -> Candidates:
        """The best candidates of an image, clipped to it, without those of a class that overlap much.

        Args:
            candidates: In pixels of the image, in any order.
            size: Height and width of the image.
            least: Sides below which a clipped box is dropped, in pixels.

        Returns:
            Best first.
        """
        early = self.convention.clips_before_suppression
        if early:
            candidates = _clip(candidates, size, least)
        kept = suppressed(candidates.boxes, candidates.scores, candidates.labels, self.nms_threshold)
        candidates = candidates.take(kept[: self.max_detections])
        return candidates if early else _clip(candidates, size, least)

    def best_of_level(self, scores: Tensor, limit: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
        """The best scores of a level of one image above the threshold, for heads that score every place.

        Args:
            scores: [N, num_classes].
            limit: How many, at most.

        Returns:
            Scores, places (rows) and labels [n], best first.
        """
        flat = scores.flatten()
        if torch.compiler.is_exporting():
            # A graph cannot ask how many are above before it takes the best.
            best, order = flat.topk(torch.sym_min(limit, flat.shape[0]))
            above = best > self.score_threshold
            best, chosen = best[above], order[above]
            return best, chosen // self.num_classes, chosen % self.num_classes
        above = torch.where(flat > self.score_threshold)[0]
        best, order = flat[above].topk(min(limit, len(above)))
        chosen = above[order]
        return best, chosen // self.num_classes, chosen % self.num_classes


def detections(
    found: Sequence[Candidates],
    sizes: Sequence[Size],
    targets: Sequence[dict[str, Any]] | None,
    masks: Sequence[Tensor] | None = None,
) -> list[dict[str, Tensor]]:
    """Detections of every image as a detector returns them.

    Args:
        found: Candidates, one record an image, best first, in pixels of the input image.
        sizes: Height and width of each input image.
        targets: May say the `original_size` of an image, to which boxes and masks are then scaled.
        masks: Probabilities in each box [N, S, S], one tensor an image.

    Returns:
        `boxes` [N, 4], `labels` [N], `scores` [N], and `masks` bool [N, H, W] where there are some.
    """
    results = []
    for i, (candidates, size) in enumerate(zip(found, sizes, strict=True)):
        height, width = targets[i].get("original_size", size) if targets else size
        scale = candidates.boxes.new_tensor([width / size[1], height / size[0]]).repeat(2)
        boxes = clip_boxes_to_image(candidates.boxes * scale, (height, width))
        results.append({"boxes": boxes, "labels": candidates.labels, "scores": candidates.scores})
        if masks is not None:
            results[-1]["masks"] = paste(masks[i], boxes, (height, width))
    return results


def _clip(candidates: Candidates, size: Size, least: float) -> Candidates:
    candidates = candidates._replace(boxes=clip_boxes_to_image(candidates.boxes, size))
    return candidates.take(remove_small_boxes(candidates.boxes, least)) if least > 0 else candidates
