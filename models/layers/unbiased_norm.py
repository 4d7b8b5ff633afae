"""A layer norm that divides by the standard deviation itself."""

import torch
from torch import Tensor, nn


class UnbiasedLayerNorm(nn.Module):
    """`weight * (x - mean) / (std + eps) + bias` over the last axis, std that of a sample (divided by n - 1).

    `nn.LayerNorm` divides by n and adds its epsilon to the variance, which is visible where there are few features.

    Args:
        dim: Features.
        eps: Added to the standard deviation.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        std, mean = torch.std_mean(x, -1, keepdim=True)
        return self.weight * (x - mean) / (std + self.eps) + self.bias
