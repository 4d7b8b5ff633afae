"""Context aggregation: convolution, self-attention and token-mixing MLP as one operation, and mixtures of them.

Reference: "Container: Context Aggregation Network", NeurIPS 2021, arXiv 2106.01401, section 3.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from models import decisions
from models.mistakes import Mistake

Static = Literal["none", "dw", "mh_dw", "mlp", "mh_mlp"]
Mixing = Literal["sigmoid", "per_head", "scales", "sum"]

STATIC = ("none", "dw", "mh_dw", "mlp", "mh_mlp")
MIXING = ("sigmoid", "per_head", "scales", "sum")


class HeadwiseConv2d(nn.Module):
    """Depthwise convolution in which the channels of a head share one kernel: A_m[i, j] = Ker[m, j - i].

    Args:
        num_heads: Groups of neighbouring channels.
        kernel_size: Side of the kernels, odd.
    """

    def __init__(self, num_heads: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, 1, kernel_size, kernel_size))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape; the heads divide C."""
        kernels = self.weight.repeat_interleave(x.shape[1] // len(self.weight), 0)
        return F.conv2d(x, kernels, padding=self.weight.shape[-1] // 2, groups=x.shape[1])


class StaticAffinity(nn.Module):
    """One learned matrix a head, from every position of a map to every other: the token mixing of an MLP-Mixer.

    Args:
        num_heads: Groups of neighbouring channels; 1 is MLP-Mixer's.
        map_size: Rows and columns of the maps; there is no other size.
    """

    def __init__(self, num_heads: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.map_size = map_size
        positions = map_size[0] * map_size[1]
        self.weight = nn.Parameter(torch.empty(num_heads, positions, positions))
        trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape; the heads divide C.

        Raises:
            Mistake: Maps of another size.
        """
        if tuple(x.shape[-2:]) != self.map_size:
            (rows, columns), (height, width) = self.map_size, x.shape[-2:]
            raise Mistake(
                f"a static MLP affinity is of maps of {rows}x{columns}, not {height}x{width}: resize the images to the "
                "img_size that the network was built for, or build it for theirs; convolutions (dw, mh_dw) take any"
            )
        values = x.unflatten(1, (len(self.weight), -1)).flatten(-2)
        return torch.einsum("mij,bmdj->bmdi", self.weight, values).reshape(x.shape)


class ContextAggregation(nn.Module):
    """`Y = concat_m((alpha A_m(X) + beta A_m) V_m) W2 + b2`, V = X W1 + b1, with a dynamic and a static affinity.

    The dynamic affinity is self-attention, `A_m(X) = softmax(Q_m K_m^T / sqrt(C / M))`, without a matrix of all pairs
    in memory where PyTorch has a fused kernel. Each head is C / M neighbouring channels. What is mixed how is noted in
    `models.decisions`.

    Args:
        dim: C.
        num_heads: M, which divides C.
        static: The static affinity. `dw`: a kernel a channel, and a bias; `mh_dw`: a kernel a head; `mlp`: one matrix
            of all pairs of positions; `mh_mlp`: one a head; `none`.
        dynamic: Whether there is self-attention.
        mixing: Where there are both: how. `sigmoid`: alpha = eps = sigmoid(w) and beta = 1 - eps with one w, which
            starts at 0; `per_head`: a w for each head; `scales`: alpha and beta are learned, and start at 0.5; `sum`:
            both are 1; a number: eps, constant.
        kernel_size: Side of the kernels, odd.
        map_size: Rows and columns of the maps, which `mlp` and `mh_mlp` need.

    Raises:
        Mistake: A choice that does not exist, no affinity at all, or numbers that do not fit.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        static: Static = "dw",
        dynamic: bool = True,
        mixing: Mixing | float = "sigmoid",
        kernel_size: int = 5,
        map_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise Mistake(f"num_heads divides the channels, {dim}, which {num_heads} does not")
        if static not in STATIC:
            raise Mistake(f"static is one of {', '.join(STATIC)}, not {static!r}")
        if static == "none" and not dynamic:
            raise Mistake("an aggregation needs an affinity: static is none, so dynamic has to be true")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise Mistake(f"kernel_size is odd, so that a kernel has a centre, not {kernel_size}")
        self.num_heads = num_heads
        # Queries, keys and values, head by head inside each.
        self.proj_in = nn.Conv2d(dim, 3 * dim if dynamic else dim, 1)
        affinity = _static(static, dim, num_heads, kernel_size, map_size)
        self.static = None if dynamic else affinity
        self.mixing = Mixture(affinity, mixing, num_heads) if dynamic and affinity is not None else None
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, M, H * W, C / M] of a projected map [B, 3C, H, W]."""
        # The last dimension is contiguous in memory, without which there is no fused kernel.
        tokens = x.flatten(2).mT.contiguous().unflatten(2, (3, self.num_heads, -1))
        query, key, value = tokens.permute(2, 0, 3, 1, 4).unbind()
        return query, key, value

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape, without the residual connection."""
        projected = self.proj_in(x)
        if self.static is not None:
            return self.proj_out(self.static(projected))
        attended = F.scaled_dot_product_attention(*self.heads(projected)).transpose(1, 2).flatten(2)
        aggregated = attended.mT.unflatten(-1, x.shape[-2:])
        if self.mixing is not None:
            aggregated = self.mixing(aggregated, projected[:, -x.shape[1] :])
        return self.proj_out(aggregated)


class Mixture(nn.Module):
    """alpha times what self-attention aggregates plus beta times what a static affinity does.

    Args:
        static: The static affinity, from values [B, C, H, W] to the same shape.
        how: The `mixing` of `ContextAggregation`.
        num_heads: M.

    Raises:
        Mistake: A choice that does not exist.
    """

    def __init__(self, static: nn.Module, how: Mixing | float, num_heads: int) -> None:
        super().__init__()
        if isinstance(how, str) and how not in MIXING:
            raise Mistake(f"mixing is one of {', '.join(MIXING)} or a number from 0 to 1, not {how!r}")
        if not isinstance(how, str) and not 0 <= how <= 1:
            raise Mistake(f"mixing, as a number, is the share of self-attention, from 0 to 1, not {how}")
        self.how = how
        self.static = static
        # Of one dimension, so that they do not decay.
        learned = num_heads if how == "per_head" else 1
        self.logit = nn.Parameter(torch.zeros(learned)) if how in ("sigmoid", "per_head") else None
        self.scale = nn.Parameter(torch.full((2,), 0.5)) if how == "scales" else None

    def coefficients(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and beta, each [1], or [M] where heads have their own."""
        if self.logit is not None:
            # sigmoid(-w) is 1 - sigmoid(w), without cancellation.
            return self.logit.sigmoid(), (-self.logit).sigmoid()
        if self.scale is not None:
            return self.scale[:1], self.scale[1:]
        share = (1.0, 1.0) if isinstance(self.how, str) else (self.how, 1 - self.how)
        return like.new_full((1,), share[0]), like.new_full((1,), share[1])

    def forward(self, attended: Tensor, values: Tensor) -> Tensor:
        """What self-attention made of the values and the values themselves, both [B, C, H, W], to one such map."""
        alpha, beta = self.coefficients(attended)
        balance = torch.stack([alpha, beta], 1).expand(attended.shape[0], -1, -1)
        decisions.note(self, "balance", balance, "affinity", ("dynamic", "static"))
        if len(alpha) > 1:
            # One coefficient a channel.
            width = attended.shape[1] // len(alpha)
            alpha, beta = alpha.repeat_interleave(width), beta.repeat_interleave(width)
        return alpha[:, None, None] * attended + beta[:, None, None] * self.static(values)


def _static(
    kind: Static, dim: int, num_heads: int, kernel_size: int, map_size: tuple[int, int] | None
) -> nn.Module | None:
    if kind == "none":
        return None
    if kind == "dw":
        return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
    if kind == "mh_dw":
        return HeadwiseConv2d(num_heads, kernel_size)
    if map_size is None:
        raise Mistake(f"static: {kind} needs map_size, the rows and columns of the maps")
    return StaticAffinity(num_heads if kind == "mh_mlp" else 1, map_size)
