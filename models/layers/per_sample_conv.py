"""Convolution with a kernel of its own for every image of the batch.

What all kernel-mixing layers (CondConv, Dynamic Convolution, DRConv) execute once their kernels are known.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of kernels, inputs and outputs that stay in the caches between two uses, and the fewest images that are worth
# a call: measured with benchmarks/dynamic_kernels.py.
_CACHED = 1 << 20
_FEWEST = 4

Padding = int | tuple[int, int] | Literal["same"]


def per_sample_conv2d(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolves image b with kernel b.

    One grouped convolution of `B * groups` groups, on a CPU one for every few images (see `images_at_once`); a plain
    convolution for one image; a batched matrix product for 1x1 kernels without groups.

    Args:
        images: [B, C, H, W].
        weight: [B, O, C / groups, kh, kw].
        bias: [B, O], or None.
        stride: Stride, for both axes or for each.
        padding: Zeros on each side, for both axes or for each; `same` as in TensorFlow: the output has
            ceil(H / stride) rows, and an odd zero goes to the bottom and to the right.
        dilation: Dilation, for both axes or for each.
        groups: Groups of channels within an image.

    Returns:
        [B, O, H', W'].
    """
    stride, dilation = _pair(stride), _pair(dilation)
    images, padding = _padded(images, (weight.shape[-2], weight.shape[-1]), stride, padding, dilation)
    together = images_at_once(images, weight.shape[1:])
    if together >= images.shape[0]:
        return _convolve(images, weight, bias, stride, padding, dilation, groups)
    biases = [None] * len(images) if bias is None else bias.split(together)
    parts = zip(images.split(together), weight.split(together), biases, strict=False)
    return torch.cat([_convolve(*part, stride, padding, dilation, groups) for part in parts])


def images_at_once(images: Tensor, kernel_shape: Sequence[int]) -> int:
    """How many images to convolve together.

    On a CPU as many as the caches hold with kernels and outputs: kernels that are mixed for a few images and used at
    once need not go through memory. Elsewhere, and in a compiled graph, all of them.

    Args:
        images: [B, C, H, W].
        kernel_shape: [O, C / groups, kh, kw].

    Returns:
        Between 1 and B.
    """
    batch, channels, height, width = images.shape
    if not images.is_cpu or torch.compiler.is_compiling():
        return batch
    elements = math.prod(kernel_shape) + (channels + kernel_shape[0]) * height * width
    return min(batch, max(_FEWEST, _CACHED // elements))


def _convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    batch, in_channels, height, width = images.shape
    if torch.compiler.is_exporting():
        return _as_products(images, weight, bias, stride, padding, dilation, groups)
    if batch == 1:
        single = None if bias is None else bias[0]
        return F.conv2d(images, weight[0], single, stride, padding, dilation, groups)
    if weight.shape[-2:] == (1, 1) and groups == 1 and padding == (0, 0):
        return _pointwise(images, weight, bias, stride)
    stacked = F.conv2d(
        images.reshape(1, batch * in_channels, height, width),
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        stride,
        padding,
        dilation,
        batch * groups,
    )
    return stacked.reshape(batch, weight.shape[1], *stacked.shape[-2:])


def _as_products(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """The same for a batch of any size, of which a graph cannot have as many groups as images: matrix products."""
    kernel = (weight.shape[-2], weight.shape[-1])
    axes = zip(images.shape[-2:], kernel, stride, padding, dilation, strict=True)
    size = [(side + 2 * zeros - spacing * (reach - 1) - 1) // step + 1 for side, reach, step, zeros, spacing in axes]
    if kernel == (1, 1) and padding == (0, 0):
        columns = images[:, :, :: stride[0], :: stride[1]].flatten(2)
    else:
        columns = F.unfold(images, kernel, dilation, padding, stride)
    product = weight.flatten(2).unflatten(1, (groups, -1)) @ columns.unflatten(1, (groups, -1))
    maps = product.flatten(1, 2).unflatten(2, size)
    return maps if bias is None else maps + bias[:, :, None, None]


def _pointwise(images: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    if stride != (1, 1):
        images = images[:, :, :: stride[0], :: stride[1]]
    kernels, columns = weight.flatten(2), images.flatten(2)
    if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
        # Pixels first, so that the output is in channels_last too.
        product = _product(columns.mT, kernels.mT, None if bias is None else bias.unsqueeze(1)).mT
    else:
        product = _product(kernels, columns, None if bias is None else bias.unsqueeze(2))
    return product.unflatten(2, images.shape[-2:])


def _product(left: Tensor, right: Tensor, shift: Tensor | None) -> Tensor:
    return torch.bmm(left, right) if shift is None else torch.baddbmm(shift, left, right)


def _padded(
    images: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: Padding, dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """Images and the symmetric padding that the convolution still has to add."""
    if padding != "same":
        return images, _pair(padding)
    missing = [
        max((-(-size // step) - 1) * step + (reach - 1) * spacing + 1 - size, 0)
        for size, reach, step, spacing in zip(images.shape[-2:], kernel, stride, dilation, strict=True)
    ]
    if all(zeros % 2 == 0 for zeros in missing):
        return images, (missing[0] // 2, missing[1] // 2)
    top, left = missing[0] // 2, missing[1] // 2
    return F.pad(images, (left, missing[1] - left, top, missing[0] - top)), (0, 0)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
