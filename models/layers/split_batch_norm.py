"""Batch norm over parts of a batch, as so many devices would have it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Normalises each part of a training batch with its own statistics; running ones are the mean of the parts'.

    Reference: "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv 1911.05722, section 3.3, whose
    norms of several devices it has on one.

    Args:
        channels: Channels of the maps.
        parts: Parts of a batch, which divide it.
        options: Of `nn.BatchNorm2d`.
    """

    def __init__(self, channels: int, parts: int = 8, **options: float | bool | None) -> None:
        super().__init__(channels, **options)  # type: ignore[arg-type]
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to normalised ones."""
        if not self.training or len(x) % self.parts:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # Parts beside each other as channels: one call normalises them all.
        beside = x.unflatten(0, (self.parts, -1)).transpose(0, 1).flatten(1, 2)
        means, variances = self.running_mean.repeat(self.parts), self.running_var.repeat(self.parts)
        weight, bias = (None if each is None else each.repeat(self.parts) for each in (self.weight, self.bias))
        # Without a momentum, batches weigh alike.
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        y = F.batch_norm(beside, means, variances, weight, bias, True, share, self.eps)
        with torch.no_grad():
            self.running_mean.copy_(means.unflatten(0, (self.parts, -1)).mean(0))
            self.running_var.copy_(variances.unflatten(0, (self.parts, -1)).mean(0))
        return y.unflatten(1, (self.parts, -1)).transpose(0, 1).flatten(0, 1)


def split_batch_norms(network: nn.Module, parts: int) -> nn.Module:
    """The network with every `nn.BatchNorm2d` over parts of a batch, in place; parameters keep their names.

    Args:
        network: Any; norms of timm's that include an activation keep it.
        parts: Parts of a batch.
    """
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d:
            split = SplitBatchNorm2d(child.num_features, parts, eps=child.eps, momentum=child.momentum)
            split.load_state_dict(child.state_dict())
            setattr(network, name, split.train(child.training))
        else:
            split_batch_norms(child, parts)
    return network
