"""Masks on DETR: where each query looks, upsampled with the help of the backbone's finer maps.

Reference: "End-to-End Object Detection with Transformers", ECCV 2020, arXiv 2005.12872, section 4.4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.detectors.detr import DETR, AttentionMaps, Decoded, Encoded
from models.detectors.postprocess import Detections
from models.detectors.predictions import Predictions
from models.detectors.set_criterion import SetTarget
from models.detectors.set_detector import SetDetector, Target
from models.mistakes import Mistake


class MaskAttention(nn.Module):
    """Attention maps of the queries, `softmax(q k^T / sqrt(D / heads))` over the heads and the cells together.

    Args:
        hidden_dim: D.
        num_heads: Heads.
    """

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(hidden_dim, hidden_dim)
        self.k_linear = nn.Linear(hidden_dim, hidden_dim)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        """Maps of queries [B, Q, D] over a memory [B, D, h, w] with padding [B, h, w]: [B, Q, heads, h, w]."""
        q = self.q_linear(queries).unflatten(-1, (self.num_heads, -1))
        k = self.k_linear(memory.flatten(2).mT).unflatten(-1, (self.num_heads, -1))
        scores = torch.einsum("bqnd,bsnd->bqns", q / q.shape[-1] ** 0.5, k)
        scores = scores.masked_fill(padding.flatten(1)[:, None, None], -torch.inf)
        return scores.flatten(2).softmax(-1).view_as(scores).unflatten(-1, memory.shape[-2:])


class MaskHead(nn.Module):
    """Five 3x3 convolutions, each with GroupNorm and ReLU, and one more to a single channel, for each query by itself.

    After the second, third and fourth one the map is brought to the resolution of the next finer map of the backbone
    (nearest neighbours) and a 1x1 convolution of that map is added.

    Args:
        in_dim: Channels that come in: the projected map's and one for each attention head.
        hidden_dim: D; the convolutions after the first have D / 2, D / 4, D / 8 and D / 16 channels.
        map_channels: Channels of the three finer maps, coarsest first.

    Raises:
        Mistake: Channels that the 8 groups of the norms do not divide.
    """

    def __init__(self, in_dim: int, hidden_dim: int, map_channels: list[int]) -> None:
        super().__init__()
        if in_dim % 8 or hidden_dim % 128:
            raise Mistake(
                f"masks need a hidden_dim that is a multiple of 128, not {hidden_dim}, and a multiple of 8 with the "
                f"number of heads added, not {in_dim}: their norms have 8 groups"
            )
        dims = [in_dim, *(hidden_dim // 2**i for i in range(1, 5))]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, dim, 3, padding=1) for before, dim in zip([in_dim, *dims[:-1]], dims, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, dim) for dim in dims)
        self.last = nn.Conv2d(dims[-1], 1, 3, padding=1)
        self.adapters = nn.ModuleList(
            nn.Conv2d(channels, dim, 1) for channels, dim in zip(map_channels, dims[1:4], strict=True)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, attention: Tensor, maps: list[Tensor]) -> Tensor:
        """Mask logits.

        Args:
            x: Projected map [B, D, h, w].
            attention: [B, Q, heads, h, w].
            maps: Three finer maps [B, C, H, W], coarsest first.

        Returns:
            [B, Q, H, W], at the resolution of the last map.
        """
        batch, queries = attention.shape[:2]
        y = torch.cat([x[:, None].expand(-1, queries, -1, -1, -1), attention], dim=2).flatten(0, 1)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = F.relu(norm(conv(y)))
            if 1 <= i <= 3:
                detail = self.adapters[i - 1](maps[i - 1])
                y = F.interpolate(y, size=detail.shape[-2:]).unflatten(0, (batch, queries)) + detail[:, None]
                y = y.flatten(0, 1)
        return self.last(y).squeeze(1).unflatten(0, (batch, queries))


class DETRSegmentation(SetDetector):
    """A DETR, trained or not, with a mask for each query.

    Args:
        detector: With `num_levels` 4, whose maps are of strides 4, 8, 16 and 32 in a ResNet.
        freeze_detector: Whether only the masks are trained.

    Raises:
        Mistake: A detector with another number of maps, or of a width that the mask head cannot have.
    """

    has_masks = True

    def __init__(self, detector: DETR, freeze_detector: bool = True) -> None:
        super().__init__()
        channels = detector.backbone.channels
        if len(channels) != 4:
            raise Mistake(f"masks need a detector with num_levels=4, not {len(channels)}")
        hidden_dim = detector.query_embed.embedding_dim
        num_heads = detector.num_heads
        self.num_classes = detector.num_classes
        # What the detector froze by itself stays frozen.
        self.detector = detector.requires_grad_(False) if freeze_detector else detector
        self.mask_attention = MaskAttention(hidden_dim, num_heads)
        self.mask_head = MaskHead(hidden_dim + num_heads, hidden_dim, channels[-2::-1])

    def encode(self, images: Tensor, padding: Tensor) -> Encoded:
        """What the detector's encoder makes of images [B, 3, H, W] with this padding [B, H, W]."""
        return self.detector.encode(images, padding)

    def memory_maps(self, encoded: Encoded) -> list[Tensor]:
        """The map of the detector's encoder."""
        return self.detector.memory_maps(encoded)

    def decode(self, encoded: Encoded) -> Decoded:
        """What the detector's decoder makes of what its encoder made."""
        return self.detector.decode(encoded)

    def predictions(self, decoded: Decoded, all_layers: bool) -> Predictions:
        """The detector's logits and boxes, and the masks of the last layer."""
        return self.detector.predictions(decoded, all_layers)._replace(masks=self.masks(decoded))

    def detections(self, predictions: Predictions) -> Detections:
        """The detector's choice of detections."""
        return self.detector.detections(predictions)

    def set_targets(self, targets: list[Target], images: list[Tensor]) -> list[SetTarget]:
        """Labels, relative boxes and masks; raises `Mistake` without masks."""
        if any("masks" not in target for target in targets):
            raise Mistake(f"{type(self).__name__} needs targets with masks in training")
        relative = self.detector.set_targets(targets, images)
        return [each._replace(masks=target["masks"]) for each, target in zip(relative, targets, strict=True)]

    def losses(self, decoded: Decoded, predictions: Predictions, targets: list[SetTarget]) -> dict[str, Tensor]:
        """The losses of the detector's criterion, which include those of masks."""
        return self.detector.losses(decoded, predictions, targets)

    def results(
        self,
        found: Detections,
        predictions: Predictions,
        images: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes, labels, scores and bool masks [Q, H, W] of each image."""
        assert predictions.masks is not None
        padded = (max(image.shape[-2] for image in images), max(image.shape[-1] for image in images))
        results = super().results(found, predictions, images, sizes)
        for i, (result, image, size) in enumerate(zip(results, images, sizes, strict=True)):
            logits = predictions.masks[i, found.queries[i]]
            result["masks"] = binary_masks(logits, padded, (image.shape[-2], image.shape[-1]), size)
        return results

    def batch_masks(self, found: Detections, predictions: Predictions, size: tuple[int, int]) -> Tensor:
        """Masks of the detections [B, N, H, W], those of their queries."""
        assert predictions.masks is not None
        logits = predictions.masks
        chosen = logits.gather(1, found.queries[..., None, None].expand(-1, -1, *logits.shape[-2:]))
        return F.interpolate(chosen, size, mode="bilinear", align_corners=False) > 0

    def attention_maps(self, images: list[Tensor]) -> AttentionMaps:
        """Where the detector's queries look; see `DETR.attention_maps`."""
        return self.detector.attention_maps(images)

    def get_classifier(self) -> nn.Module:
        """The detector's layer that depends on the classes."""
        return self.detector.get_classifier()

    def masks(self, decoded: Decoded) -> Tensor:
        """Mask logits of the queries after the last layer [B, Q, h, w], over the padded images."""
        encoded = decoded.encoded
        attention = self.mask_attention(decoded.states[-1], encoded.memory_map(), encoded.padding)
        return self.mask_head(encoded.projected, attention, encoded.maps[-2::-1])


def binary_masks(logits: Tensor, padded: tuple[int, int], size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Masks of an image, from logits over its batch's padded images.

    Logits are resampled bilinearly to `padded`, kept where their sigmoid is above one half, cropped to `size` and
    resampled to `original` by nearest neighbours.

    Args:
        logits: [n, h, w].
        padded: Height and width of the padded images.
        size: Height and width of the image without padding.
        original: Height and width of the image before it was resized.

    Returns:
        Bool [n, *original].
    """
    full = F.interpolate(logits[:, None].float(), size=padded, mode="bilinear", align_corners=False)
    masks = (full.sigmoid() > 0.5)[..., : size[0], : size[1]].float()
    return F.interpolate(masks, size=original).squeeze(1).bool()
