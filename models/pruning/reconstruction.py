"""Channels chosen so that the next layer's output can be rebuilt from those that are left.

References: "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", arXiv 1707.06342; "Channel
Pruning for Accelerating Very Deep Neural Networks", arXiv 1707.06168 (LASSO regression).
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from torch import Tensor


def thinet_channels(contributions: Tensor, count: int) -> Tensor:
    """Channels [count] that ThiNet's greedy choice leaves, in their original order, equation 6 of the paper.

    Channels go one by one, each time the one with which the sum of what has gone stays smallest in square.

    Args:
        contributions: What each channel of the input adds to sampled values of the next layer's output, without its
            bias [samples, C].
        count: Channels that are kept.
    """
    x = contributions.double()
    squares = x.square().sum(0)
    gone = torch.zeros(x.shape[1], dtype=torch.bool)
    removed = torch.zeros(len(x), dtype=x.dtype)
    for _ in range(x.shape[1] - count):
        cost = squares + 2 * (x.T @ removed)
        channel = int(cost.masked_fill(gone, float("inf")).argmin())
        gone[channel] = True
        removed += x[:, channel]
    return (~gone).nonzero()[:, 0]


def thinet_scales(contributions: Tensor, kept: Tensor) -> Tensor:
    """Scale of each kept channel [count] with which they come closest to the whole sum, by least squares, equation 7.

    The scales are folded into the next layer's weights.

    Args:
        contributions: See `thinet_channels` [samples, C].
        kept: Indices of the channels that are kept [count].
    """
    x = contributions.double()
    return torch.linalg.lstsq(x[:, kept], x.sum(1, keepdim=True), driver="gelsd").solution[:, 0].to(contributions)


def lasso_channels(contributions: Tensor, count: int, searches: int = 40) -> Tensor:
    """Channels [count] that LASSO regression leaves, in their original order, equation 3 of the paper.

    The penalty is raised until at most `count` channels have a coefficient that is not zero. Where that many cannot be
    had with any penalty, the largest coefficients below it decide about the last ones.

    Args:
        contributions: What each channel adds to each output of sampled positions, without the bias [samples, out, C].
        count: Channels that are kept.
        searches: Halvings of the range that the penalty is sought in.
    """
    x = contributions.double().flatten(0, 1)
    # |y - x beta| needs only the products of x and y, of which these have as many rows as there are channels.
    gram, target = (x.T @ x).numpy(), (x.T @ x.sum(1)).numpy()
    values, vectors = np.linalg.eigh(gram)
    kept_values = values > values.max() * 1e-12
    root = np.sqrt(values[kept_values])
    rows = root[:, None] * vectors[:, kept_values].T
    aim = (vectors[:, kept_values].T @ target) / root
    low, high = 0.0, float(np.abs(target).max()) / len(rows)
    best = looser = np.zeros(len(gram))
    for _ in range(searches):
        penalty = (low + high) / 2
        with warnings.catch_warnings():
            # A penalty next to zero is left soon, whether it has converged or not.
            warnings.simplefilter("ignore", ConvergenceWarning)
            beta = np.abs(Lasso(alpha=penalty, fit_intercept=False, max_iter=2000).fit(rows, aim).coef_)
        if (beta != 0).sum() <= count:
            best, high = beta, penalty
        else:
            looser, low = beta, penalty
        if (best != 0).sum() == count:
            break
    order = np.lexsort((-looser, -best))
    return torch.from_numpy(order[:count].copy()).sort().values


def least_squares_weight(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Weight [out, in] of the linear map from inputs that comes closest to the outputs.

    Args:
        inputs: Patches of the kept channels at sampled positions [samples, in].
        outputs: What the whole layer gave there, without its bias [samples, out].
    """
    solution = torch.linalg.lstsq(inputs.double(), outputs.double(), driver="gelsd").solution
    return solution.T.to(inputs)
