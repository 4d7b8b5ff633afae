"""DETR: objects as a set, one per query, without anchors and without suppression.

Reference: "End-to-End Object Detection with Transformers", ECCV 2020, arXiv 2005.12872.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.compute import inference
from models.detectors.batching import pad
from models.detectors.dense_transformer import Bias, DenseTransformer, Memory
from models.detectors.features import Features
from models.detectors.matching import MatchCosts
from models.detectors.postprocess import Detections, best_classes
from models.detectors.predictions import Predictions
from models.detectors.set_criterion import LossWeights, SetCriterion
from models.detectors.set_detector import SetDetector
from models.layers.mlp import MLP
from models.layers.position_encoding import LearnedPositionEncoding, sine_position_encoding
from models.mistakes import Mistake


class Prior(NamedTuple):
    """Where queries look before they have seen anything.

    Attributes:
        bias: What is added to the scores of the cross-attention.
        centres: [Q, 2] of (x, y) before a sigmoid, to which the centres of boxes are relative.
    """

    bias: Bias
    centres: Tensor


class Encoded(NamedTuple):
    """A batch after the encoder, and what led there.

    Attributes:
        memory: What the transformer's encoder returned.
        projected: The map that was encoded [B, D, h, w].
        padding: True on the map's padding [B, h, w].
        maps: The backbone's maps, finest first.
        image_padding: True on the images' padding [B, H, W].
    """

    memory: Memory
    projected: Tensor
    padding: Tensor
    maps: list[Tensor]
    image_padding: Tensor

    def memory_map(self) -> Tensor:
        """The tokens of the memory as a map [B, D, h, w]."""
        return self.memory.tokens.mT.unflatten(-1, self.padding.shape[-2:])


class Decoded(NamedTuple):
    """A batch after the decoder.

    Attributes:
        states: Queries after each decoder layer [L, B, Q, D].
        encoded: The batch after the encoder.
        centres: The prior's centres; None without a prior.
    """

    states: Tensor
    encoded: Encoded
    centres: Tensor | None


class AttentionMaps(NamedTuple):
    """Where the queries of a batch look, for pictures.

    Attributes:
        weights: Attention of each decoder layer [L, B, heads, Q, h, w], adding up to one over the cells of the image.
        gaussian: What SMCA adds to the scores [L, B, heads, Q, h, w]; None without a prior.
        detections: What was found in the B images; their `queries` are the Q above.
        padding: True on the map's padding [B, h, w].
    """

    weights: Tensor
    gaussian: Tensor | None
    detections: Detections
    padding: Tensor


class DETR(SetDetector):
    """Backbone, encoder over the cells of its last map, decoder of learned queries, a class and a box for each query.

    The content of a query starts at zero; what is learned is its position. After each decoder layer, through one norm
    and with the same heads, `logits = W h + b` (the last one: no object) and `box = sigmoid(MLP(h))`.

    Args:
        backbone: timm's name of a network.
        num_classes: K; labels are 0 to K - 1.
        num_queries: Q, more than the objects of any image.
        hidden_dim: D, a multiple of 4.
        num_heads: Heads of every attention.
        feedforward_dim: Hidden features of every feed-forward network.
        encoder_layers, decoder_layers: How many.
        dropout: Probability, everywhere in the transformer.
        pre_norm: Whether the transformer's norms come before its branches.
        position_encoding: `sine`, or `learned` for maps of up to 50 x 50 cells.
        pretrained: Whether the backbone starts from timm's weights.
        backbone_options: Further arguments of `timm.create_model`; `{output_stride: 16}` makes a ResNet DC5.
        num_levels: Maps that the backbone hands out; the last one is encoded, the others are for masks.
        frozen_norm, frozen_stages: See `Features`.

    Raises:
        Mistake: A choice or a size that does not exist.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 91,
        num_queries: int = 100,
        hidden_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        dropout: float = 0.1,
        pre_norm: bool = False,
        position_encoding: Literal["sine", "learned"] = "sine",
        pretrained: bool = False,
        backbone_options: dict[str, Any] | None = None,
        num_levels: int = 1,
        frozen_norm: bool = True,
        frozen_stages: int = 2,
    ) -> None:
        super().__init__()
        if hidden_dim < 4 or hidden_dim % 4:
            raise Mistake(f"hidden_dim is a multiple of 4 (sines and cosines of two axes), not {hidden_dim}")
        if position_encoding not in ("sine", "learned"):
            raise Mistake(f"position_encoding is one of sine, learned, not {position_encoding!r}")
        if min(num_queries, decoder_layers, num_levels) < 1 or encoder_layers < 0:
            raise Mistake(
                f"{num_queries=}, {decoder_layers=} and {num_levels=} are at least 1, {encoder_layers=} at least 0"
            )
        self.num_classes = num_classes
        self.num_heads = num_heads
        self.backbone = Features(
            backbone, backbone_options, pretrained, list(range(-num_levels, 0)), frozen_norm, frozen_stages
        )
        self.input_proj = nn.Conv2d(self.backbone.channels[-1], hidden_dim, 1)
        self.learned_position = LearnedPositionEncoding(hidden_dim // 2) if position_encoding == "learned" else None
        self.transformer = DenseTransformer(
            hidden_dim, num_heads, feedforward_dim, encoder_layers, decoder_layers, dropout, pre_norm
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, 3)
        self.criterion = self._criterion()

    def encode(self, images: Tensor, padding: Tensor) -> Encoded:
        """Everything up to the encoder, of images [B, 3, H, W] with this padding [B, H, W]."""
        features = self.backbone(images, padding)
        x, map_padding = features[-1]
        x = self.input_proj(x)
        memory = self.transformer.encode(x, self.position(map_padding), map_padding)
        return Encoded(memory, x, map_padding, [each for each, _ in features], padding)

    def memory_maps(self, encoded: Encoded) -> list[Tensor]:
        """The encoder's tokens as the one map [B, D, h, w] that they are."""
        return [encoded.memory_map()]

    def decode(self, encoded: Encoded) -> Decoded:
        """Everything up to the decoder, of what `encode` made."""
        bias, centres = self._prior(encoded.image_padding, encoded.padding) or (None, None)
        states = self.transformer.decode(encoded.memory, self.query_embed.weight, bias)
        return Decoded(states, encoded, centres)

    def position(self, padding: Tensor) -> Tensor:
        """Position encoding of a map [B, D, h, w], from its padding [B, h, w]."""
        if self.learned_position is not None:
            return self.learned_position(padding)
        return sine_position_encoding(padding, self.query_embed.embedding_dim // 2)

    def predictions(self, decoded: Decoded, all_layers: bool) -> Predictions:
        """Logits and boxes, after all decoder layers or after the last one."""
        states = decoded.states if all_layers else decoded.states[-1:]
        boxes = self.bbox_embed(states).float()
        if decoded.centres is not None:
            centre, size = boxes.split(2, dim=-1)
            boxes = torch.cat([centre + decoded.centres, size], dim=-1)
        return Predictions(self.class_embed(states).float(), boxes.sigmoid())

    def detections(self, predictions: Predictions) -> Detections:
        """The scored and labelled detections in the predictions of the last layer."""
        return best_classes(predictions.logits[-1], predictions.boxes[-1])

    def attention_maps(self, images: list[Tensor]) -> AttentionMaps:
        """Where each query looks, in evaluation mode and without gradients; the network's mode is left as it is.

        Args:
            images: B normalised images [3, h, w].
        """
        weights: list[Tensor] = []
        biases: list[Tensor] = []

        def keep(attention: Any, inputs: tuple[Any, ...]) -> None:
            query, key, _, padding, bias = inputs
            weights.append(attention.weights(query, key, padding, bias))
            if bias is not None:
                biases.append(bias)

        layers = self.transformer.decoder.layers
        hooks = [layer.get_submodule("multihead_attn").register_forward_pre_hook(keep) for layer in layers]
        try:
            with inference(self):
                encoded = self.encode(*pad(images))
                found = self.detections(self.predictions(self.decode(encoded), all_layers=False))
        finally:
            for hook in hooks:
                hook.remove()
        shape = encoded.padding.shape[-2:]
        return AttentionMaps(
            torch.stack(weights).unflatten(-1, shape),
            torch.stack(biases).unflatten(-1, shape) if biases else None,
            found,
            encoded.padding,
        )

    def get_classifier(self) -> nn.Module:
        """The layer that depends on the classes; a checkpoint of other classes leaves it as it is."""
        return self.class_embed

    def _criterion(self) -> SetCriterion:
        return SetCriterion(
            self.num_classes, "softmax", MatchCosts(cls=1.0, l1=5.0, giou=2.0), LossWeights(ce=1.0, l1=5.0, giou=2.0)
        )

    def _prior(self, image_padding: Tensor, padding: Tensor) -> Prior | None:
        """The prior, if there is one, for images with this padding [B, H, W] and their map with this one [B, h, w]."""
        return None
