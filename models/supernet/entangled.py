"""Layers whose narrower versions are parts of themselves: weight entanglement.

Each layer holds the weights of its widest version. `choose` says how wide it is from now on; `part` are the weights of
that version, and what `forward` computes with. They are taken at each forward, so that nothing points into storage that
an optimiser or a move to a device may have replaced, and copied together, so that a network that is extracted computes
bit by bit the same.

Reference: "AutoFormer: Searching Transformers for Visual Recognition", ICCV 2021, arXiv 2107.00651, section 3.2.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

# How the bias of a narrower map to queries, keys and values is taken.
BiasSlicing = Literal["official", "interleaved"]
Part = tuple[Tensor, Tensor | None]


class EntangledLinear(nn.Linear):
    """A linear map of the first so many inputs to the first so many outputs.

    Args:
        in_features: Inputs, at most.
        out_features: Outputs, at most.
        bias: Whether there is a bias.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.chosen = (in_features, out_features)

    def choose(self, in_features: int, out_features: int) -> None:
        """Says how wide it is from now on."""
        self.chosen = (in_features, out_features)

    def part(self) -> Part:
        """Weight [out, in] and bias [out] of the version that was chosen."""
        inputs, outputs = self.chosen
        return self.weight[:outputs, :inputs].contiguous(), None if self.bias is None else self.bias[:outputs]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(x, *self.part())


class EntangledQKV(EntangledLinear):
    """A map to queries, keys and values, of each of which a narrower version has the first so many.

    Rows of the weight are all queries, then all keys, then all values, as timm has them; in published checkpoints they
    take turns. The published code slices the bias otherwise than the weight: it takes the first entries of all, so that
    the same entry may belong to a key in one width and to a value in another. Released weights were trained so.

    Args:
        in_features: Features of a token, at most.
        width: Features of the queries, at most; keys and values have as many.
        bias: Whether there is a bias.
        bias_slicing: `official`: the first 3 d entries; `interleaved`: those of the weight's rows.
    """

    def __init__(self, in_features: int, width: int, bias: bool = True, bias_slicing: BiasSlicing = "official") -> None:
        super().__init__(in_features, 3 * width, bias)
        self.bias_slicing = bias_slicing

    def part(self) -> Part:
        """Weight [3 d, in] and bias [3 d] of the version that was chosen."""
        inputs, outputs = self.chosen
        width = outputs // 3
        weight = self.weight.unflatten(0, (3, -1))[:, :width, :inputs].reshape(outputs, inputs)
        if self.bias is None or self.bias_slicing == "official":
            return weight, None if self.bias is None else self.bias[:outputs]
        return weight, self.bias.unflatten(0, (3, -1))[:, :width].reshape(outputs)


class EntangledConv2d(nn.Conv2d):
    """A convolution of which a narrower version has the first so many channels.

    Args:
        in_channels, out_channels: Channels; those that leave at most.
        options: Further ones of `Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__(in_channels, out_channels, **options)
        self.chosen = out_channels

    def choose(self, out_channels: int) -> None:
        """Says how wide it is from now on."""
        self.chosen = out_channels

    def part(self) -> Part:
        """Weight [out, in, h, w] and bias [out] of the version that was chosen."""
        return self.weight[: self.chosen], None if self.bias is None else self.bias[: self.chosen]

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, h, w]."""
        return self._conv_forward(x, *self.part())


class EntangledLayerNorm(nn.LayerNorm):
    """A norm of the first so many features.

    Args:
        dim: Features, at most.
        eps: Added to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__(dim, eps)
        self.chosen = dim

    def choose(self, dim: int) -> None:
        """Says how wide it is from now on."""
        self.chosen = dim

    def part(self) -> Part:
        """Weight and bias [dim] of the version that was chosen."""
        return self.weight[: self.chosen], self.bias[: self.chosen]

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        return F.layer_norm(x, (self.chosen,), *self.part(), self.eps)
