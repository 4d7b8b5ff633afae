"""The feed-forward network of a transformer's layer."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Two linear layers with ReLU and dropout between them: a module of its own, or the base of a layer around it.

    Args:
        hidden_dim: Features that come in and go out.
        feedforward_dim: Features between the layers.
        dropout: Probability.
    """

    def __init__(self, hidden_dim: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        """[..., hidden_dim] to [..., hidden_dim], each token by itself."""
        return self.linear2(self.dropout(F.relu(self.linear1(x))))

    forward: Callable[..., Any] = feed_forward
