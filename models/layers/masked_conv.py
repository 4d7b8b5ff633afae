"""Convolution at some pixels only; the others are filled in from their computed neighbours.

Reference: "Anytime Dense Prediction with Confidence Adaptivity", arXiv 2104.00749.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.compute import has_values, record
from models.layers.pointwise_conv import pointwise_conv
from models.layers.regions import Region
from models.mistakes import Mistake

# Width of the interpolation kernel, and what keeps its sum from zero.
REACH = 3
EPS = 1e-5


class MaskedConv2d(nn.Conv2d):
    """Convolution y at the pixels of a mask m, interpolation elsewhere.

        z = m * conv(x),    y = z + (1 - m) * (k * z),    k(d) = exp(-falloff^2 d^2) / (sum + eps)

    k is a 7x7 kernel over distances d > 0, shared by all channels. It is not normalised by how many neighbours are
    computed: a skipped pixel without one is zero. `falloff` is learned.

    On whole maps everything is computed and masked; on tiles (see `models.layers.regions`) only tiles are.

    Args:
        in_chans: Channels that come in.
        out_chans: Channels that leave.
        kernel_size: Odd; the padding keeps the size of the map.
        stride: 1 or 2.
        bias: Whether to add a bias, before masking.
        falloff: Initial value of the learned scalar, in 1 / pixels.

    Raises:
        Mistake: An even kernel, a stride that is neither 1 nor 2, or a strided 1x1 convolution.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int,
        stride: int = 1,
        bias: bool = False,
        falloff: float = 3.0,
    ) -> None:
        if kernel_size % 2 == 0 or stride not in (1, 2) or (kernel_size == 1 and stride > 1):
            raise Mistake(
                f"a masked convolution of kernel_size={kernel_size} and stride={stride} is not possible: "
                "kernel sizes are odd, strides 1 or 2, and 1 for a 1x1 convolution"
            )
        super().__init__(in_chans, out_chans, kernel_size, stride, kernel_size // 2, bias=bias)
        self.falloff = nn.Parameter(torch.tensor(falloff))

    def forward(self, x: Tensor, at: Region | None = None) -> Tensor:
        """Maps to maps.

        Args:
            x: [B, in_chans, H, W]; in the layout of `at`, or with stride 2 of `at.finer`, where they have one.
            at: Kept pixels of the result; None for all of them.

        Returns:
            [B, out_chans, H / stride, W / stride], or tiles of it.
        """
        if at is None:
            return super().forward(x)
        height, width = at.mask.shape[1:]
        dense = self.weight.numel() * height * width
        record(self, dense * at.share, dense)
        if not has_values(x):
            return super().forward(x)
        if at.layout is None:
            y = super().forward(x)
            z = y * at.mask[:, None]
            return torch.where(at.mask[:, None], y, self.interpolate(z))
        return self._on_tiles(x, at)

    def interpolation_kernel(self) -> Tensor:
        """k, float32 [7, 7]; the centre is zero."""
        return interpolation_kernel(self.falloff)

    def interpolate(self, z: Tensor) -> Tensor:
        """k * z over each channel of a map [B, C, H, W]."""
        kernel = self.interpolation_kernel().expand(z.shape[1], 1, -1, -1)
        return F.conv2d(z, kernel.to(z.dtype), padding=REACH, groups=z.shape[1])

    def _on_tiles(self, x: Tensor, at: Region) -> Tensor:
        layout = at.layout
        source = layout if self.stride[0] == 1 or at.finer is None else at.finer.layout
        assert layout is not None
        assert source is not None
        if self.kernel_size[0] == 1:
            y = pointwise_conv(x, self.weight, self.bias)
        elif layout.whole and source.whole:
            y = super().forward(x)
        else:
            windows = at.windows(x, source, self.stride[0], self.kernel_size[0], self.kernel_size[0] // 2)
            y = F.conv2d(windows, self.weight, self.bias, self.stride)
        rows = layout.to_rows(y)
        if len(at.filled_rows):
            weights = self.interpolation_kernel().flatten()[at.fill_taps].to(rows.dtype)
            filled = F.embedding_bag(at.fill_reads, rows, at.fill_starts, mode="sum", per_sample_weights=weights)
            rows.index_copy_(0, at.filled_rows, filled)
        return layout.to_maps(rows)


def interpolation_kernel(falloff: Tensor) -> Tensor:
    """Weights of the neighbours of a skipped pixel.

    Args:
        falloff: [...], in 1 / pixels.

    Returns:
        float32 [..., 7, 7]; the centre is zero.
    """
    offset = torch.arange(-REACH, REACH + 1, device=falloff.device, dtype=torch.float32)
    squares = offset[:, None] ** 2 + offset**2
    kernel = torch.exp(-falloff.float().square()[..., None, None] * squares) * (squares > 0)
    return kernel / (kernel.sum((-2, -1), keepdim=True) + EPS)


def strongest_kernel(network: nn.Module) -> Tensor:
    """The largest weight that any masked convolution of a network gives to each neighbour, float32 [7, 7]."""
    falloffs: list[Tensor] = [module.falloff for module in network.modules() if isinstance(module, MaskedConv2d)]
    return interpolation_kernel(torch.stack(falloffs)).amax(0)


def convolve(conv: nn.Conv2d, x: Tensor, at: Region | None) -> Tensor:
    """A convolution of either kind; a plain one is for maps without a region."""
    return conv(x) if at is None else conv(x, at)


__all__ = ["MaskedConv2d", "convolve", "interpolation_kernel", "strongest_kernel"]
