"""Tokens-to-token: images become a square grid of tokens by soft splits and linear attention.

    unfold -> performer -> map -> unfold 3/2/1 -> performer -> map -> unfold 3/2/1 -> linear

References: "Tokens-to-Token ViT", arXiv 2101.11986; "Rethinking Attention with Performers", arXiv 2009.14794; the grids
other than 14x14 are those of "Not All Images are Worth 16x16 Words", arXiv 2105.15075.
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from models.mistakes import Mistake


class TokenPerformer(nn.Module):
    """Single-head linear attention and an MLP, each with a residual; the first residual is the values.

        phi(a) = exp(W a - |a|^2 / 2) / sqrt(m)
        y_t = phi(q_t)^T sum_s phi(k_s) v_s^T / (phi(q_t)^T sum_s phi(k_s) + 1e-8)
        x = v + proj(y);  x + MLP(LN(x))

    Args:
        in_dim: Channels that come in.
        dim: Channels that leave, those of keys, queries and values.
        kernel_ratio: m / dim, where m is the number of random features (rows of W).
        drop_rate: Dropout of both branches.

    Raises:
        Mistake: No random feature is left.
    """

    def __init__(self, in_dim: int, dim: int, kernel_ratio: float = 0.5, drop_rate: float = 0.1) -> None:
        super().__init__()
        num_features = int(dim * kernel_ratio)
        if num_features < 1:
            raise Mistake(
                f"a performer of {dim} channels has no random features at kernel_ratio={kernel_ratio}: "
                f"their product must be at least 1"
            )
        self.norm1 = nn.LayerNorm(in_dim)
        self.kqv = nn.Linear(in_dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop_rate)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, drop=(0.0, drop_rate))
        rows = nn.init.orthogonal_(torch.empty(num_features, dim)) * math.sqrt(num_features)
        # A parameter without gradient, and not a buffer, because the published parameter counts include it.
        self.w = nn.Parameter(rows, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, in_dim] to [B, N, dim]."""
        keys, queries, values = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        x = values + self.drop(self.proj(self._attend(keys, queries, values)))
        return x + self.mlp(self.norm2(x))

    def _attend(self, keys: Tensor, queries: Tensor, values: Tensor) -> Tensor:
        # The exponentials span more than half precision does. The meta device has no autocast that could be suspended.
        device = values.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            keys, queries = self._phi(keys.float()), self._phi(queries.float())
            summed = queries @ (keys.mT @ values.float())
            return summed / (queries @ keys.sum(1).unsqueeze(2) + 1e-8)

    def _phi(self, a: Tensor) -> Tensor:
        w = self.w.float()
        return torch.exp(F.linear(a, w) - a.square().sum(-1, keepdim=True) / 2) / math.sqrt(len(w))


class TokensToTokens(nn.Module):
    """The tokeniser of T2T-ViT for square images and a square grid of tokens.

    Args:
        image_size: Height and width of the images.
        grid: Tokens along each side.
        in_chans: Channels of the images.
        embed_dim: Channels of the tokens.
        token_dim: Channels inside.

    Raises:
        Mistake: No soft split leads from images of this size to this grid.
    """

    def __init__(self, image_size: int, grid: int, in_chans: int, embed_dim: int, token_dim: int = 64) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = first_split(image_size, grid)
        self.side = _windows(image_size, self.kernel, self.stride, self.padding)
        self.attention1 = TokenPerformer(in_chans * self.kernel**2, token_dim)
        self.attention2 = TokenPerformer(token_dim * 9, token_dim)
        self.project = nn.Linear(token_dim * 9, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, in_chans, image_size, image_size] to tokens [B, grid^2, embed_dim], row by row."""
        x = F.unfold(images, self.kernel, padding=self.padding, stride=self.stride).mT
        x = _split(self.attention1(x), self.side)
        x = _split(self.attention2(x), _windows(self.side, 3, 2, 1))
        return self.project(x)


def first_split(image_size: int, grid: int) -> tuple[int, int, int]:
    """Kernel, stride and padding of the first of three soft splits; the other two halve its map.

    The stride is the nearest to a map four times as fine as the grid and the kernel 7/4 of it. The padding is the
    smallest that comes closest to that map, between centred windows and half a kernel. At 224 pixels this gives the
    published 14/8/3, 11/6/5 and 7/4/2 for 7, 10 and 14 tokens.

    Args:
        image_size: Height and width of the images.
        grid: Tokens along each side.

    Raises:
        Mistake: The two halvings do not arrive at the grid; the message lists the grids that can be had.
    """
    split = _first_split(image_size, grid)
    if split is None:
        possible = [n for n in range(1, image_size // 4 + 1) if _first_split(image_size, n)]
        raise Mistake(
            f"tokens-to-token does not split images of {image_size} pixels into {grid} tokens a side; it does into "
            f"{', '.join(map(str, possible))}"
        )
    return split


def sinusoid(positions: int, dim: int) -> Tensor:
    """Fixed position encoding [1, positions, dim]: sines in even channels, cosines in odd ones.

    angle(p, j) = p / 10000^(2 floor(j / 2) / dim), "Attention Is All You Need", arXiv 1706.03762, section 3.5.
    """
    channel = torch.arange(dim, dtype=torch.float64)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos())[None].float()


def _first_split(image_size: int, grid: int) -> tuple[int, int, int] | None:
    if grid < 1 or 4 * grid > image_size:
        return None
    stride = round(image_size / (4 * grid))
    kernel = math.ceil(7 * stride / 4)
    paddings = range((kernel - stride) // 2, kernel // 2 + 1)
    padding = min(paddings, key=lambda p: abs(_windows(image_size, kernel, stride, p) - 4 * grid))
    side = _windows(image_size, kernel, stride, padding)
    halved = _windows(_windows(side, 3, 2, 1), 3, 2, 1)
    return (kernel, stride, padding) if halved == grid else None


def _split(tokens: Tensor, side: int) -> Tensor:
    # Overlapping 3x3 windows of the map that the tokens form, channel-major, as tokens of nine times the channels.
    return F.unfold(tokens.mT.unflatten(2, (side, side)), 3, padding=1, stride=2).mT


def _windows(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1
