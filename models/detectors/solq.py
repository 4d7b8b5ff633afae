"""SOLQ: instance segmentation with one query an object, which gives its class, its box and its mask as a vector.

Reference: "SOLQ: Segmenting Objects by Learning Queries", NeurIPS 2021, arXiv 2106.02351.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.compute import has_values
from models.detectors.deformable_detr import DeformableDETR
from models.detectors.postprocess import Detections, to_pixels
from models.detectors.predictions import Predictions
from models.detectors.set_criterion import SetTarget
from models.layers.mask_code import MaskCode
from models.layers.mask_paste import paste
from models.layers.mlp import MLP


class SOLQ(DeformableDETR):
    """Deformable DETR with box refinement, and a head that gives the low frequencies of each object's mask.

    All decoder layers share that head. Its vector are the first DCT coefficients of the mask inside its box (section
    3.3); an evaluation decodes the masks of the detections it returns, each query once.

    Args:
        backbone: timm's name of a network.
        num_classes: K; labels are 0 to K - 1.
        num_coefficients: Length of a mask vector.
        mask_size: Side in pixels of the square that a mask is cropped to before it is encoded.
        vector_hidden_dim: Width inside the head.
        hidden_dim: Width of the transformer.
        refine: Whether each decoder layer corrects the boxes of the one before; see `DeformableDETR`.
        **options: Further arguments of `DeformableDETR`.

    Raises:
        Mistake: See `DeformableDETR`; or more coefficients than the mask has pixels.
    """

    has_masks = True

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 91,
        num_coefficients: int = 256,
        mask_size: int = 128,
        vector_hidden_dim: int = 1024,
        hidden_dim: int = 384,
        refine: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_classes, hidden_dim=hidden_dim, refine=refine, **options)
        self.mask_code = MaskCode(num_coefficients, mask_size)
        self.vector_embed = MLP(hidden_dim, vector_hidden_dim, num_coefficients, 3)
        last = self.vector_embed.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        # As published: the start of a box, for all coefficients from the third on.
        nn.init.constant_(last.bias[2:], -2.0)

    def vectors(self, states: Tensor) -> Tensor:
        """Mask vectors [L, B, Q, V] of decoder states [L, B, Q, D], float32."""
        return self.vector_embed(states).float()

    def set_targets(self, targets: list[dict[str, Any]], images: list[Tensor]) -> list[SetTarget]:
        """Labels, relative boxes and mask vectors; each mask is cropped with its box in pixels of the image."""
        relative = super().set_targets(targets, images)
        height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
        codes = []
        for target in targets:
            masks = target["masks"]
            masks = F.pad(masks, (0, width - masks.shape[-1], 0, height - masks.shape[-2]))
            codes.append(self.mask_code.encode(self.mask_code.crop(masks, target["boxes"])))
        return [each._replace(vectors=code) for each, code in zip(relative, codes, strict=True)]

    def results(
        self,
        found: Detections,
        predictions: Predictions,
        images: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes, labels, scores and bool masks [N, H, W] of each image."""
        assert predictions.vectors is not None
        results = super().results(found, predictions, images, sizes)
        for result, vectors, queries, size in zip(results, predictions.vectors[-1], found.queries, sizes, strict=True):
            result["masks"] = self._masks(vectors, queries, result["boxes"], size)
        return results

    def batch_masks(self, found: Detections, predictions: Predictions, size: tuple[int, int]) -> Tensor:
        """Masks of the detections [B, N, H, W], each decoded from the vector of its query."""
        assert predictions.vectors is not None
        vectors = predictions.vectors[-1]
        chosen = vectors.gather(1, found.queries[..., None].expand(-1, -1, vectors.shape[-1]))
        boxes = to_pixels(found.boxes, size).flatten(0, 1)
        masks = paste(self.mask_code.masks(chosen.flatten(0, 1)), boxes, size)
        return masks.unflatten(0, found.queries.shape)

    def _masks(self, vectors: Tensor, queries: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Masks of the detections of an image, from the vectors of all its queries and the query of each detection."""
        if not has_values(queries):
            return paste(self.mask_code.masks(vectors[queries]), boxes, size)
        once, place = queries.unique(return_inverse=True)
        first = torch.zeros_like(once).scatter_(0, place, torch.arange(len(place), device=place.device))
        return paste(self.mask_code.masks(vectors[once]), boxes[first], size)[place]
