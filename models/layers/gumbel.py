"""Drawing one of several options from scores, with a gradient: the Gumbel softmax and its straight-through form.

Reference: "Categorical Reparameterization with Gumbel-Softmax", arXiv 1611.01144.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gumbel_noise(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise `-ln(-ln u)` of uniform numbers in [0, 1), finite everywhere."""
    return -torch.log(1e-10 - torch.log(uniform + 1e-10))


def straight_through(scores: Tensor, noise: Tensor | float, temperature: Tensor | float) -> tuple[Tensor, Tensor]:
    """One-hot sample forward, softmax backward.

    Args:
        scores: Unnormalised log-probabilities [B, m].
        noise: Gumbel noise [B, m].
        temperature: Divisor of the softmax's scores; the one-hot sample does not depend on it.

    Returns:
        One-hot [B, m] with the gradient of the softmax, and the softmax [B, m].
    """
    perturbed = scores.log_softmax(1) + noise
    soft = (perturbed / temperature).softmax(1)
    hard = F.one_hot(perturbed.argmax(1), scores.shape[1]).to(soft.dtype)
    return hard + (soft - soft.detach()), soft


class GumbelSelection(nn.Module):
    """Draws one of m options from scores, with a gradient.

    Args:
        temperature: A buffer, so that `callbacks.Annealing` can change it while training goes on.
    """

    temperature: Tensor

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, scores: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scores [B, m], and Gumbel noise [B, m] if it is given, to one-hot samples [B, m]."""
        if noise is None:
            noise = gumbel_noise(torch.rand_like(scores))
        return straight_through(scores, noise, self.temperature)[0]
