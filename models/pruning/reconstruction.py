"""Channels chosen so that the next layer's output can be rebuilt from those that are left.

References: "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", arXiv 1707.06342; "Channel
Pruning for Accelerating Very Deep Neural Networks", arXiv 1707.06168 (LASSO regression).
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path
from torch import Tensor


def thinet_order(contributions: Tensor) -> Tensor:
    """Channels [C] in the order in which ThiNet's greedy choice takes them away, equation 6 of the paper.

    They go one by one, each time the one with which the sum of what has gone stays smallest in square.

    Args:
        contributions: What each channel of the input adds to sampled values of the next layer's output, without its
            bias [samples, C].
    """
    x = contributions.double()
    squares = x.square().sum(0)
    gone = torch.zeros(x.shape[1], dtype=torch.bool)
    removed = torch.zeros(len(x), dtype=x.dtype)
    order = []
    for _ in range(x.shape[1]):
        cost = squares + 2 * (x.T @ removed)
        channel = int(cost.masked_fill(gone, float("inf")).argmin())
        gone[channel] = True
        removed += x[:, channel]
        order.append(channel)
    return torch.tensor(order)


def thinet_channels(contributions: Tensor, count: int) -> Tensor:
    """Channels [count] that ThiNet's greedy choice leaves, in their original order.

    Args:
        contributions: See `thinet_order`.
        count: Channels that are kept.
    """
    order = thinet_order(contributions)
    return order[len(order) - count :].sort().values


def thinet_scales(contributions: Tensor, kept: Tensor) -> Tensor:
    """Scale of each kept channel [count] with which they come closest to the whole sum, by least squares, equation 7.

    The scales are folded into the next layer's weights.

    Args:
        contributions: See `thinet_channels` [samples, C].
        kept: Indices of the channels that are kept [count].
    """
    x = contributions.double()
    return torch.linalg.lstsq(x[:, kept], x.sum(1, keepdim=True), driver="gelsd").solution[:, 0].to(contributions)


def lasso_order(contributions: Tensor) -> Tensor:
    """Channels [C] in the order in which LASSO regression gives them up as its penalty is raised, equation 3.

    Args:
        contributions: What each channel adds to sampled values of the next layer's output, without its bias
            [samples, C].
    """
    x = contributions.double().numpy()
    with warnings.catch_warnings():
        # Channels that add the same leave a choice, which is made by their order.
        warnings.simplefilter("ignore", ConvergenceWarning)
        penalties, _, path = lars_path(x, x.sum(1), method="lasso")
    present = path != 0
    # The largest penalty that each survives; those that never come in go first.
    survived = np.where(present.any(1), penalties[present.argmax(1)], -1.0)
    return torch.from_numpy(np.argsort(survived, kind="stable").copy())


def lasso_channels(contributions: Tensor, count: int) -> Tensor:
    """Channels [count] that LASSO regression leaves, in their original order.

    Args:
        contributions: See `lasso_order`.
        count: Channels that are kept.
    """
    order = lasso_order(contributions)
    return order[len(order) - count :].sort().values


def least_squares_weight(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Weight [out, in] of the linear map from inputs that comes closest to the outputs.

    Args:
        inputs: Patches of the kept channels at sampled positions [samples, in].
        outputs: What the whole layer gave there, without its bias [samples, out].
    """
    solution = torch.linalg.lstsq(inputs.double(), outputs.double(), driver="gelsd").solution
    return solution.T.to(inputs)
