"""Mean Teacher: a student agrees with the average of its past weights.

Reference: "Mean teachers are better role models", arXiv 1703.01780, and its published code.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def consistency_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of probabilities, a mean over the classes and a sum over the batch.

    Args:
        student: Logits [B, K].
        teacher: Logits [B, K], which get no gradient.
    """
    return (student.softmax(1) - teacher.detach().softmax(1)).square().sum() / student.shape[1]


def consistency_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's probabilities from the teacher's, summed over the batch.

    Args:
        student: Logits [B, K].
        teacher: Logits [B, K], which get no gradient.
    """
    return F.kl_div(student.log_softmax(1), teacher.detach().softmax(1), reduction="sum")


def tie(first: Tensor, second: Tensor) -> Tensor:
    """Squared distance of two heads' logits, a mean over the classes and a sum over the batch; both get gradients.

    Args:
        first, second: Logits [B, K].
    """
    return (first - second).square().sum() / first.shape[1]


def sigmoid_ramp(epoch: float, length: float) -> float:
    """Weight of the consistency, from exp(-5) to 1: exp(-5 (1 - epoch / length)^2).

    Args:
        epoch: Epochs done, fractions included.
        length: Epochs of the ramp; 0 for none.
    """
    if not length:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(max(epoch, 0.0), length) / length) ** 2)
