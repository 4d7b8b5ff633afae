"""What the detection transformers share: objects as a set, one query each, without anchors and without suppression.

Reference: "End-to-End Object Detection with Transformers", ECCV 2020, arXiv 2005.12872.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.detectors.batching import output_sizes, pad
from models.detectors.postprocess import Detections, to_pixels
from models.detectors.predictions import Predictions
from models.detectors.set_criterion import SetCriterion, SetTarget, relative_targets
from models.mistakes import Mistake

Target = dict[str, Any]


class EncoderMaps(nn.Module):
    """Hands the encoder's maps on as they are: the place where distillation reads them, by the name `encoder_maps`."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps [B, D, h, w], finest first."""
        return maps


class SetDetector(nn.Module, ABC):
    """A detector of DETR's family, in steps that have the same names in all of them.

        padded images -> encode -> encoded -> decode -> decoded -> predictions
        predictions -> losses (training, with `set_targets`), or detections -> results (evaluation)

    Attributes:
        num_classes: K; labels are 0 to K - 1.
        has_masks: Whether there are masks among the results.
        criterion: Losses of predictions.
        encoder_maps: What the encoder made, as maps.
    """

    has_masks = False
    num_classes: int
    criterion: SetCriterion

    def __init__(self) -> None:
        super().__init__()
        self.encoder_maps = EncoderMaps()

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """Losses in training, detections in evaluation.

        Args:
            images: B normalised images [3, h, w] of any sizes.
            targets: In training of each image `boxes` [n, 4], xyxy in pixels, `labels` [n], int64, of 0 to K - 1, and
                `masks` [n, h, w], bool, where the network has masks. In evaluation optional, and read for
                `original_size` (height, width) alone, in whose pixels the results then are.

        Returns:
            Weighted losses by name, to be added up; or for each image `boxes` [N, 4], xyxy in pixels of the original
            image, if its size was given, else of the input, `labels` [N] and `scores` [N], best first, and where the
            network has masks `masks` [N, H, W], bool.

        Raises:
            Mistake: Training without targets, or without the masks that the network needs.
        """
        encoded = self.encode(*pad(images))
        self.encoder_maps(self.memory_maps(encoded))
        decoded = self.decode(encoded)
        predictions = self.predictions(decoded, all_layers=self.training)
        if not self.training:
            return self.results(self.detections(predictions), predictions, images, output_sizes(images, targets))
        if targets is None:
            raise Mistake(f"{type(self).__name__} needs targets in training")
        return self.losses(decoded, predictions, self.set_targets(targets, images))

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        """Detections in images of one size, as many in each, in tensors of the whole batch.

        Args:
            images: [B, 3, H, W], normalised.

        Returns:
            `boxes` [B, N, 4], xyxy in pixels of the images, `labels` [B, N], `scores` [B, N], best first, and where the
            network has masks `masks` [B, N, H, W], bool.
        """
        height, width = images.shape[-2:]
        padding = torch.zeros_like(images[:, 0], dtype=torch.bool)
        predictions = self.predict(images, padding, all_layers=False)
        found = self.detections(predictions)
        boxes = to_pixels(found.boxes, (height, width))
        answer = {"boxes": boxes, "labels": found.labels, "scores": found.scores}
        if self.has_masks:
            answer["masks"] = self.batch_masks(found, predictions, (height, width))
        return answer

    def batch_masks(self, found: Detections, predictions: Predictions, size: tuple[int, int]) -> Tensor:
        """Masks of the detections [B, N, H, W], bool, of a network that has them.

        Args:
            found: Detections in the B images.
            predictions: Predictions that they were chosen from.
            size: Height and width of all images.
        """
        raise NotImplementedError(f"{type(self).__name__} has no masks")

    @abstractmethod
    def encode(self, images: Tensor, padding: Tensor) -> Any:
        """Everything up to the encoder, of images [B, 3, H, W] with this padding [B, H, W]."""

    @abstractmethod
    def memory_maps(self, encoded: Any) -> list[Tensor]:
        """The encoder's tokens as maps [B, D, h, w], finest first, of what `encode` made."""

    @abstractmethod
    def decode(self, encoded: Any) -> Any:
        """Everything up to the decoder, of what `encode` made."""

    @abstractmethod
    def predictions(self, decoded: Any, all_layers: bool) -> Predictions:
        """What the heads make of what `decode` made: after all decoder layers, as training needs, or after the last."""

    @abstractmethod
    def detections(self, predictions: Predictions) -> Detections:
        """The scored and labelled detections in the predictions of the last layer."""

    def predict(self, images: Tensor, padding: Tensor, all_layers: bool) -> Predictions:
        """`predictions` of images [B, 3, H, W] with this padding [B, H, W]."""
        return self.predictions(self.decode(self.encode(images, padding)), all_layers)

    def set_targets(self, targets: list[Target], images: list[Tensor]) -> list[SetTarget]:
        """What the criterion compares predictions with; arguments as of `forward`."""
        return relative_targets(targets, images)

    def losses(self, decoded: Any, predictions: Predictions, targets: list[SetTarget]) -> dict[str, Tensor]:
        """Weighted losses of the predictions of all layers."""
        return self.criterion(predictions, targets)

    def results(
        self,
        found: Detections,
        predictions: Predictions,
        images: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """The detections of each image as `forward` returns them.

        Args:
            found: Detections in the B images.
            predictions: Predictions that they were chosen from.
            images: [3, h, w] each, before padding.
            sizes: Height and width of each, in whose pixels the results are.
        """
        return [
            {"boxes": to_pixels(boxes, size), "labels": labels, "scores": scores}
            for boxes, labels, scores, size in zip(found.boxes, found.labels, found.scores, sizes, strict=True)
        ]
