"""SMCA: DETR whose queries know roughly where to look, and so converge many times faster.

Reference: "Fast Convergence of DETR with Spatially Modulated Co-Attention", ICCV 2021, arXiv 2101.07448; the
single-scale network.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.detectors.detr import DETR, Prior
from models.detectors.matching import MatchCosts
from models.detectors.postprocess import Detections, top_scores
from models.detectors.predictions import Predictions
from models.detectors.set_criterion import LossWeights, SetCriterion
from models.layers.mlp import MLP
from models.layers.xavier import xavier_matrices
from models.mistakes import Mistake

# Predicted factors on the squared distances of a head: on both at once, on x and y, on x, y and their product.
GAUSSIAN_SCALES: Mapping[str, int] = {"type1": 0, "type2": 1, "type3": 2, "type4": 3}


class GaussianPrior(nn.Module):
    """What each decoder layer adds to the scores of its cross-attention: the logarithm of a Gaussian around a point.

    With o the norm of a query's content plus its position: the centre `c = MLP(o)` of the first layer serves all
    layers, before a sigmoid and relative to the image; every layer and head has an offset `W o + b` in cells, around
    which, at cell (j, i),

        G = -|s_x d_x + s_y d_y + s_xy d_x d_y| / smooth,  d_x = (mu_x - j)^2,  d_y = (mu_y - i)^2.

    Section 3.2 of the paper.

    Args:
        hidden_dim: D.
        num_heads: Heads.
        num_layers: Decoder layers.
        scale: Squared factors predicted from o: `type1` none (s_x = s_y = 1), `type2` one for both distances, `type3`
            two, `type4` those and one for the product, which the others lack.
        smooth: The wider, the larger.

    Raises:
        Mistake: An unknown scale, or a width that is not positive.
    """

    def __init__(self, hidden_dim: int, num_heads: int, num_layers: int, scale: str, smooth: float) -> None:
        super().__init__()
        if scale not in GAUSSIAN_SCALES:
            raise Mistake(f"gaussian_scale is one of {', '.join(GAUSSIAN_SCALES)}, not {scale!r}")
        if smooth <= 0:
            raise Mistake(f"smooth is positive, not {smooth}")
        self.num_heads = num_heads
        self.smooth = smooth
        self.centre = MLP(hidden_dim, hidden_dim, 2, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(num_layers))
        self.offsets = nn.ModuleList(nn.Linear(hidden_dim, 2 * num_heads) for _ in range(num_layers))
        factors = GAUSSIAN_SCALES[scale]
        self.scales = nn.ModuleList(
            nn.Linear(hidden_dim, factors * num_heads) for _ in range(num_layers * (factors > 0))
        )
        xavier_matrices(self)
        for layer in self.scales.children():
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.ones_(layer.bias)

    def centres(self, placed: Tensor) -> Tensor:
        """Centres [..., 2] of (x, y) before a sigmoid, from the first layer's content plus position [..., D]."""
        return self.centre(self.norms[0](placed)).float()

    def forward(self, layer: int, placed: Tensor, centres: Tensor, shape: tuple[int, int]) -> Tensor:
        """The bias of a decoder layer.

        Args:
            layer: Its index.
            placed: Content plus position of its queries [B, Q, D].
            centres: [B, Q, 2] of (x, y) in cells.
            shape: Rows and columns of the memory, S cells in all.

        Returns:
            [B, heads, Q, S], float32, at most 0.
        """
        o = self.norms[layer](placed)
        offsets = self.offsets[layer](o).float().unflatten(-1, (self.num_heads, 2))
        mu_x, mu_y = (centres[:, :, None] + offsets).transpose(1, 2).split(1, dim=-1)
        rows, columns = (torch.arange(length, device=placed.device) for length in shape)
        d_x, d_y = (mu_x - columns).square()[..., None, :], (mu_y - rows).square()[..., :, None]
        if not len(self.scales):
            distance = d_x + d_y
        else:
            factors = self.scales[layer](o).float().square().unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            # One axis a factor: [B, heads, Q, 1, 1].
            s = factors[..., None, None].unbind(-3)
            distance = s[0] * d_x + s[min(1, len(s) - 1)] * d_y
            if len(s) == 3:
                distance = distance + s[2] * d_x * d_y
        return -(distance.abs() / self.smooth).flatten(-2)


class SMCA(DETR):
    """DETR with a Gaussian prior on its cross-attention, boxes around the prior's centre, and the focal loss.

    `box = sigmoid(MLP(h) + [c, 0, 0])` with the centre c of the first layer, for all layers. The class head has K + 1
    independent sigmoids, the last of which is never positive.

    Args:
        num_queries: Q.
        gaussian_scale: See `GaussianPrior`.
        smooth: See `GaussianPrior`.
        **options: Further arguments of `DETR`.

    Raises:
        Mistake: See `DETR` and `GaussianPrior`.
    """

    def __init__(
        self,
        num_queries: int = 300,
        gaussian_scale: Literal["type1", "type2", "type3", "type4"] = "type3",
        smooth: float = 8.0,
        **options: Any,
    ) -> None:
        super().__init__(num_queries=num_queries, **options)
        hidden_dim, num_layers = self.query_embed.embedding_dim, len(self.transformer.decoder.layers)
        self.prior = GaussianPrior(hidden_dim, self.num_heads, num_layers, gaussian_scale, smooth)
        # All classes start at a probability of 1 %, so that the many negatives do not swamp the first steps.
        nn.init.constant_(self.class_embed.bias, -math.log(99))

    def detections(self, predictions: Predictions) -> Detections:
        """The Q best scores in the predictions of the last layer, best first; a query can be among them twice.

        The published code also ranks the last logit, which is no class.
        """
        return top_scores(predictions.logits[-1, ..., :-1], predictions.boxes[-1], predictions.logits.shape[2])

    def _criterion(self) -> SetCriterion:
        return SetCriterion(
            self.num_classes, "focal", MatchCosts(cls=2.0, l1=5.0, giou=2.0), LossWeights(ce=2.0, l1=5.0, giou=2.0)
        )

    def _prior(self, image_padding: Tensor, padding: Tensor) -> Prior | None:
        position = self.query_embed.weight
        # The content of the first layer is zero, so that the centres are the same for all images.
        centres = self.prior.centres(position)
        inside = ~image_padding
        size = torch.stack([inside[:, 0].sum(-1), inside[:, :, 0].sum(-1)], dim=-1)[:, None]
        cells = size / self.backbone.strides[-1] * centres.sigmoid()
        shape = (padding.shape[-2], padding.shape[-1])

        def bias(layer: int, content: Tensor) -> Tensor:
            return self.prior(layer, content + position, cells, shape)

        return Prior(bias, centres)
