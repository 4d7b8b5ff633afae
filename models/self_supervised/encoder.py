"""What students and teachers are made of: a backbone, and heads that map its features to where they are compared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoder(nn.Module):
    """A backbone with a projector.

    Args:
        backbone: Images [B, 3, H, W] to features [B, C], such as any network of timm's with `num_classes=0`.
        projector: Features to projections [B, D].
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def features(self, images: Tensor) -> Tensor:
        """Features [B, C] of images [B, 3, H, W]."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        """Projections [B, D] of images [B, 3, H, W]."""
        return self.projector(self.features(images))


def feature_dim(backbone: nn.Module) -> int:
    """Channels of the pooled features of a network of timm's."""
    dim = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    assert isinstance(dim, int)
    return dim


def mlp_head(
    in_dim: int, hidden_dim: int | None, out_dim: int, norm: bool = True, last_bias: bool = True
) -> nn.Sequential:
    """A projector or predictor: Linear, (BatchNorm,) ReLU, Linear.

    BYOL's has a norm and no bias at the end ("Bootstrap Your Own Latent", arXiv 2006.07733, section 3.3); that of MoCo
    v2 has no norm (arXiv 2003.04297); that of MoCo v1 is one linear map.

    Args:
        in_dim: Channels of the features.
        hidden_dim: Channels inside; None for a single linear map.
        out_dim: Channels of the projections.
        norm: Whether the hidden layer is normalised over the batch.
        last_bias: Whether the last linear map has a bias.
    """
    if hidden_dim is None:
        return nn.Sequential(nn.Linear(in_dim, out_dim, bias=last_bias))
    norms = [nn.BatchNorm1d(hidden_dim)] if norm else []
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim), *norms, nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim, bias=last_bias)
    )


class WeightNormedLinear(nn.Module):
    """A linear map without bias whose rows have a direction and a length of their own: y = g v/|v| x.

    Reference: "Weight Normalization", arXiv 1602.07868.

    Args:
        in_dim: Channels of the input.
        out_dim: Channels of the output.
        frozen_length: Whether the lengths stay 1.
    """

    def __init__(self, in_dim: int, out_dim: int, frozen_length: bool = True) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not frozen_length)
        self.direction = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] to [..., out_dim]."""
        return F.linear(x, self.direction * (self.length / self.direction.norm(dim=1, keepdim=True)))


class DINOHead(nn.Module):
    """DINO's projector: an MLP, a sphere, and a weight-normalised linear map to the prototypes.

    Reference: "Emerging Properties in Self-Supervised Vision Transformers", arXiv 2104.14294, section 3.2 and
    appendix C.

    Args:
        in_dim: Channels of the features.
        out_dim: Prototypes, K.
        norm: Whether hidden layers are normalised over the batch.
        frozen_length: Whether the last layer's rows keep the length 1.
        num_layers: Linear maps of the MLP.
        hidden_dim: Channels inside.
        bottleneck_dim: Channels on the sphere.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        norm: bool = False,
        frozen_length: bool = True,
        num_layers: int = 3,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(num_layers - 1):
            layers.append(nn.Linear(hidden_dim if i else in_dim, hidden_dim))
            layers += [nn.BatchNorm1d(hidden_dim)] if norm else []
            layers.append(nn.GELU())
        layers.append(nn.Linear(hidden_dim if layers else in_dim, bottleneck_dim))
        self.mlp = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormedLinear(bottleneck_dim, out_dim, frozen_length)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, in_dim] to logits of the prototypes [B, K]."""
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))
