"""Linear layers with ReLU between them."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from models.mistakes import Mistake


class MLP(nn.Module):
    """`num_layers` linear layers, with ReLU after each but the last.

    Args:
        in_dim: Features that come in.
        hidden_dim: Features between two layers.
        out_dim: Features that come out.
        num_layers: Linear layers, at least one.

    Raises:
        Mistake: No layers.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        if num_layers < 1:
            raise Mistake(f"an MLP has at least one layer, not num_layers={num_layers}")
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] to [..., out_dim]."""
        *inner, last = self.layers
        for layer in inner:
            x = F.relu(layer(x))
        return last(x)
