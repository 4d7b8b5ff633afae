"""Deformable DETR: set prediction with deformable attention on several feature maps.

Reference: "Deformable DETR: Deformable Transformers for End-to-End Object Detection", arXiv 2010.04159.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.compute import inference
from models.detectors.batching import pad
from models.detectors.deformable_transformer import (
    BoxHead,
    DeformableTransformer,
    Memory,
    Proposals,
    ProposalStage,
    Queries,
)
from models.detectors.features import Features
from models.detectors.matching import MatchCosts
from models.detectors.postprocess import Detections, top_scores
from models.detectors.predictions import Predictions
from models.detectors.set_criterion import LossWeights, SetCriterion, SetTarget
from models.detectors.set_detector import SetDetector
from models.layers.deformable_attention import DeformableAttention, SamplingPoints
from models.layers.position_encoding import sine_position_encoding
from models.layers.xavier import xavier_matrices
from models.mistakes import Mistake


class Decoded(NamedTuple):
    """A batch after the decoder.

    Attributes:
        states: Queries after each decoder layer, [B, Q, D] each.
        boxes: With refinement, those of each layer [B, Q, 4]; else none.
        references: Where the queries started, points or boxes [B, Q, 2 or 4].
        proposals: The first stage's; None for a network of one stage.
    """

    states: list[Tensor]
    boxes: list[Tensor]
    references: Tensor
    proposals: Proposals | None


class DeformableDETR(SetDetector):
    """Deformable DETR in any of its variants.

    The learning rate of the parameters whose names contain `backbone`, `reference_points` or `sampling_offsets` is a
    tenth of the others' in the paper.

    Args:
        backbone: timm's name of a network.
        num_classes: K; labels are 0 to K - 1.
        num_queries: Q, more than the objects of any image.
        hidden_dim: Width of the transformer, D.
        num_heads: Heads of every attention.
        feedforward_dim: Hidden features of every feed-forward network.
        encoder_layers, decoder_layers: How many.
        encoder_points, decoder_points: Points that each head samples on each map.
        dropout: Probability, everywhere in the transformer.
        num_levels: Maps that attention reads: the backbone's last three, or fewer, and after them convolutions of
            stride two. One level is the single-scale variant.
        refine: Iterative box refinement: each decoder layer corrects the boxes of the one before, with its own heads.
        two_stage: Queries come from boxes that the encoder proposes; goes with `refine`.
        norm_groups: Groups of the norms that follow the projections of the feature maps; a divisor of `hidden_dim`.
            On maps of one or two cells few channels a group make them unstable.
        num_detections: Most confident pairs of query and class that an evaluation returns.
        pretrained: Whether the backbone starts from timm's weights.
        backbone_options: Further arguments of `timm.create_model`; `{output_stride: 16}` makes a ResNet DC5.
        frozen_norm, frozen_stages: See `Features`.

    Raises:
        Mistake: Sizes that do not fit each other, or `two_stage` without `refine`.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 91,
        num_queries: int = 300,
        hidden_dim: int = 256,
        num_heads: int = 8,
        feedforward_dim: int = 1024,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        encoder_points: int = 4,
        decoder_points: int = 4,
        dropout: float = 0.1,
        num_levels: int = 4,
        refine: bool = False,
        two_stage: bool = False,
        norm_groups: int = 32,
        num_detections: int = 100,
        pretrained: bool = False,
        backbone_options: dict[str, Any] | None = None,
        frozen_norm: bool = True,
        frozen_stages: int = 2,
    ) -> None:
        super().__init__()
        if hidden_dim % norm_groups or hidden_dim % 4:
            raise Mistake(f"hidden_dim must be a multiple of 4 and of {norm_groups=}, not {hidden_dim}")
        counts = (num_levels, encoder_layers, decoder_layers, num_queries, num_detections)
        if min(counts) < 1:
            raise Mistake(
                "num_levels, encoder_layers, decoder_layers, num_queries and num_detections are at least 1, "
                f"not {', '.join(map(str, counts))}"
            )
        if two_stage and not refine:
            raise Mistake("two_stage goes with refine=True: its queries start from boxes")
        self.num_classes, self.num_detections, self.refine = num_classes, num_detections, refine
        levels = list(range(-min(num_levels, 3), 0))
        self.backbone = Features(backbone, backbone_options, pretrained, levels, frozen_norm, frozen_stages)
        self.input_proj = _projections(self.backbone.channels, num_levels, hidden_dim, norm_groups)
        self.transformer = DeformableTransformer(
            hidden_dim,
            feedforward_dim,
            num_heads,
            num_levels,
            encoder_layers,
            decoder_layers,
            encoder_points,
            decoder_points,
            dropout,
        )
        self.proposals = ProposalStage(num_classes, num_queries, hidden_dim) if two_stage else None
        if not two_stage:
            self.query_embed = nn.Embedding(num_queries, 2 * hidden_dim)
            self.reference_points = nn.Linear(hidden_dim, 2)
            xavier_matrices(self.reference_points)
            nn.init.zeros_(self.reference_points.bias)
        heads = decoder_layers if refine else 1
        self.class_embed = nn.ModuleList(nn.Linear(hidden_dim, num_classes) for _ in range(heads))
        self.bbox_embed = nn.ModuleList(BoxHead(hidden_dim) for _ in range(heads))
        self._start_heads()
        self.criterion = SetCriterion(num_classes, "focal", MatchCosts(cls=2, l1=5, giou=2), LossWeights())

    def _start_heads(self) -> None:
        """Scores near 0.01, and boxes that stay at their references, a little over a tenth of the image wide."""
        classifiers: list[Any] = [*self.class_embed]
        box_heads: list[Any] = [*self.bbox_embed]
        if self.proposals is not None:
            classifiers.append(self.proposals.class_embed)
            box_heads.append(self.proposals.bbox_embed)
        for classifier in classifiers:
            nn.init.constant_(classifier.bias, -math.log(99))
        for head in box_heads:
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)
        if self.proposals is None:
            # Only a point becomes a box by its correction alone; a box that is refined has a size already.
            nn.init.constant_(box_heads[0].layers[-1].bias[2:], -2.0)

    def get_classifier(self) -> nn.Module:
        """The layers whose size depends on the classes: what fine-tuning for other classes does not load."""
        stage = [] if self.proposals is None else [self.proposals.class_embed]
        return nn.ModuleList([*self.class_embed, *stage])

    def encode(self, images: Tensor, padding: Tensor) -> Memory:
        """Everything up to the encoder, of images [B, 3, H, W] with this padding [B, H, W]."""
        maps, paddings = self.project(images, padding)
        return self.transformer.encode(maps, paddings, [self.position(x) for x in paddings])

    def memory_maps(self, encoded: Memory) -> list[Tensor]:
        """The encoder's tokens as maps [B, D, h, w], finest first."""
        sizes = encoded.levels.sizes
        tokens = encoded.tokens.split([height * width for height, width in sizes], 1)
        return [each.mT.unflatten(-1, size) for each, size in zip(tokens, sizes, strict=True)]

    def decode(self, encoded: Memory) -> Decoded:
        """Everything up to the decoder, of what `encode` made; with `refine` the boxes on the way, too."""
        queries, proposals = self.queries(encoded)
        heads = self.bbox_embed if self.refine else ()
        states, boxes = self.transformer.decode(encoded, queries, heads)
        return Decoded(states, boxes, queries.references, proposals)

    def predictions(self, decoded: Decoded, all_layers: bool) -> Predictions:
        """Logits, boxes and perhaps mask vectors, after all decoder layers or after the last one."""
        first = 0 if all_layers else len(decoded.states) - 1
        states = decoded.states[first:]
        classifiers = list(self.class_embed)[first:] if self.refine else [self.class_embed[0]] * len(states)
        logits = [head(x).float() for head, x in zip(classifiers, states, strict=True)]
        boxes = decoded.boxes[first:] or [self.bbox_embed[0](x, decoded.references) for x in states]
        return Predictions(torch.stack(logits), torch.stack(boxes), self.vectors(torch.stack(states)))

    def detections(self, predictions: Predictions) -> Detections:
        """The most confident pairs of query and class in the predictions of the last layer."""
        return top_scores(predictions.logits[-1], predictions.boxes[-1], self.num_detections)

    def losses(self, decoded: Decoded, predictions: Predictions, targets: list[SetTarget]) -> dict[str, Tensor]:
        """Weighted losses of the predictions of all layers, and of the proposals of a two-stage network."""
        stage = decoded.proposals
        proposals = None if stage is None else Predictions(stage.logits[None], stage.boxes[None])
        return self.criterion(predictions, targets, proposals)

    def queries(self, memory: Memory) -> tuple[Queries, Proposals | None]:
        """What the decoder starts from, learned or chosen from the proposals of a two-stage network."""
        if self.proposals is not None:
            proposals = self.proposals(memory)
            return proposals.queries, proposals
        # Copies: a view of a parameter would trip the counter of operations, which looks for its gradient function.
        position, content = self.query_embed.weight.repeat(memory.tokens.shape[0], 1, 1).chunk(2, -1)
        return Queries(content, position, self.reference_points(position).float().sigmoid()), None

    def project(self, images: Tensor, padding: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps [B, D, h, w] that the transformer reads, finest first, and their padding [B, h, w]."""
        features = self.backbone(images, padding)
        maps = [proj(x) for proj, (x, _) in zip(self.input_proj, features, strict=False)]
        paddings = [mask for _, mask in features]
        coarsest = features[-1][0]
        for proj in self.input_proj[len(features) :]:
            coarsest = proj(coarsest)
            maps.append(coarsest)
            paddings.append(_resized(padding, coarsest.shape[-2:]))
        return maps, paddings

    def position(self, padding: Tensor) -> Tensor:
        """Position encoding of a map [B, D, h, w], from its padding [B, h, w]."""
        return sine_position_encoding(padding, self.transformer.level_embed.shape[1] // 2, offset=-0.5)

    def vectors(self, states: Tensor) -> Tensor | None:
        """Mask vectors of decoder states [L, B, Q, D]; a detector of boxes has none."""
        return None

    def sampling_points(self, image: Tensor, query: int) -> SamplingPoints:
        """Where a query looks in an image, for pictures; runs an evaluation of that image.

        Args:
            image: [3, h, w], normalised.
            query: Its number.

        Returns:
            Locations [layers, heads, levels, points, 2] as (x, y) from 0 to 1 over the image, and attention weights
            [layers, heads, levels, points], of the decoder layers in their order.
        """
        seen: list[SamplingPoints] = []

        def note(attention: nn.Module, inputs: tuple[Any, ...], _: Tensor) -> None:
            assert isinstance(attention, DeformableAttention)
            content, references, _, levels, _ = inputs
            points = attention.sampling_points(content[:, query, None], references[:, query, None], levels)
            seen.append(SamplingPoints(*(x[0, 0] for x in points)))

        layers = self.transformer.decoder.children()
        handles = [layer.get_submodule("cross_attention").register_forward_hook(note) for layer in layers]
        try:
            with inference(self):
                self.predict(*pad([image]), all_layers=False)
        finally:
            for handle in handles:
                handle.remove()
        return SamplingPoints(*(torch.stack(x) for x in zip(*seen, strict=True)))


def _projections(channels: Sequence[int], num_levels: int, hidden_dim: int, groups: int) -> nn.ModuleList:
    """1x1 convolutions of the backbone's maps, then 3x3 ones of stride two, each with its group norm."""
    convolutions = [nn.Conv2d(c, hidden_dim, 1) for c in channels]
    source = channels[-1]
    while len(convolutions) < num_levels:
        convolutions.append(nn.Conv2d(source, hidden_dim, 3, 2, 1))
        source = hidden_dim
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
    return nn.ModuleList(nn.Sequential(x, nn.GroupNorm(groups, hidden_dim)) for x in convolutions)


def _resized(padding: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(padding[:, None].float(), size=list(size))[:, 0].bool()
