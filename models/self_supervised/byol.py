"""BYOL: a student predicts what its teacher makes of another view.

Reference: "Bootstrap Your Own Latent", arXiv 2006.07733, and its published code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.self_supervised.encoder import Encoder, feature_dim, mlp_head
from models.self_supervised.learner import Learner, Views, two_views

_EPS = 1e-12


def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the directions of two vectors, 2 - 2 cos, equation 2 of the paper.

    Args:
        prediction, target: [B, D].

    Returns:
        [B].
    """
    return (_direction(prediction) - _direction(target)).square().sum(-1)


def _direction(x: Tensor) -> Tensor:
    return x * x.square().sum(-1, keepdim=True).clamp(min=_EPS).rsqrt()


class BYOL(Learner):
    """Student and teacher with a projector each, and the student's predictor.

    The teacher starts as a copy of the student; the published one starts with weights of its own.

    Args:
        backbone: Images to features [B, C].
        hidden_dim: Channels inside of projector and predictor.
        out_dim: Channels of the projections.
        last_bias: Whether projector and predictor end in a bias, as those of the PyTorch code of Spatial Ensemble do.
        norm: Whether projector and predictor are normalised over the batch; without, all projections become the same.
        predictor: Whether there is a predictor; without, too.
    """

    def __init__(
        self,
        backbone: nn.Module,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        last_bias: bool = False,
        norm: bool = True,
        predictor: bool = True,
    ) -> None:
        super().__init__(Encoder(backbone, mlp_head(feature_dim(backbone), hidden_dim, out_dim, norm, last_bias)))
        own = mlp_head(out_dim, hidden_dim, out_dim, norm, last_bias) if predictor else nn.Identity()
        self.predictor: nn.Module = own

    def loss(self, views: Views) -> Tensor:
        """Mean over the batch of both directions' losses, from 0 to 8.

        Raises:
            Mistake: There are not two views of each image.
        """
        first, second = two_views(views)
        predictions = [self.predictor(self.student(view)) for view in (first, second)]
        with torch.no_grad():
            targets = [self.teacher(view) for view in (second, first)]
        losses = [regression_loss(*pair) for pair in zip(predictions, targets, strict=True)]
        return (losses[0] + losses[1]).mean()
