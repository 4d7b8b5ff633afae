"""Batch normalisation of a teacher by statistics that settle in the course of a training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override


class MomentumBatchNorm(_BatchNorm):
    """Normalises by a moving mean and variance, into which the batch is blended by a share that falls from 1 to 0.

    In training, mean and variance are a * batch + (1 - a) * running, without gradients. After every second forward pass
    the running ones move by the mean of the two views' statistics, likewise, and a goes on along half a cosine,
    a_k = (1 + cos(pi k / K)) / 2 after k pairs. In evaluation it is an ordinary batch norm.

    As in the published code, the variance of a batch of n values is corrected twice: sum (x - mean)^2 n / (n - 1)^2.
    Forward passes are counted in `num_batches_tracked`, so that a training resumed between two steps goes on.

    Reference: "Momentum^2 Teacher", arXiv 2101.07525.

    Args:
        num_features: channels C.
        total_pairs: pairs of forward passes in the whole training, K.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    first_mean: Tensor
    first_var: Tensor

    def __init__(self, num_features: int, total_pairs: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.total_pairs = total_pairs
        # Of the first view of a pair, until the second is there.
        self.register_buffer("first_mean", torch.zeros(num_features), persistent=False)
        self.register_buffer("first_var", torch.ones(num_features), persistent=False)

    @property
    def share(self) -> Tensor:
        """a, of the next forward pass; on the device."""
        pairs = torch.div(self.num_batches_tracked, 2, rounding_mode="floor").to(self.running_mean.dtype)
        return (1 + torch.cos(math.pi * pairs / self.total_pairs)) / 2

    @override
    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"a batch norm takes [B, C, ...], not {tuple(input.shape)}")

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Normalises [B, C, ...]."""
        self._check_input_dim(input)
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        with torch.no_grad():
            values = input.transpose(0, 1).flatten(1)
            mean, var = values.mean(1), values.var(1) * (values.shape[1] / (values.shape[1] - 1))
            share = self.share
            blended = torch.lerp(self.running_mean, mean, share), torch.lerp(self.running_var, var, share)
            self._note(mean, var, share)
        return F.batch_norm(input, *blended, self.weight, self.bias, eps=self.eps)

    def _note(self, mean: Tensor, var: Tensor, share: Tensor) -> None:
        second = self.num_batches_tracked % 2 == 1
        for running, first, new in (
            (self.running_mean, self.first_mean, mean),
            (self.running_var, self.first_var, var),
        ):
            running.lerp_((first + new) / 2, share * second)
            first.copy_(new)
        self.num_batches_tracked += 1
