"""Several kernels of one shape, mixed into one for each image: what CondConv and Dynamic Convolution share.

They differ in where the coefficients come from. What is mixed, how it is initialised and how it is executed is the
same, and so is what a picture of the coefficients needs.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from models.decisions import note
from models.layers.per_sample_conv import Padding, images_at_once, per_sample_conv2d
from models.mistakes import Mistake

Init = Literal["paper", "host", "copy"]
INITS = ("paper", "host", "copy")
# A warm start from copies needs kernels that differ, or all of them would get the same gradient for ever.
_COPY_NOISE = 0.01


class KernelMixture(nn.Module):
    """A convolution whose kernel is a linear combination of n kernels, `W(x) = sum_i r_i(x) W_i`, per image.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: See `nn.Conv2d`; `same` padding
            is TensorFlow's (see `per_sample_conv2d`).
        bias: Whether there are n biases, mixed with the same coefficients.
        num_kernels: How many kernels there are, n.

    Raises:
        Mistake: Less than one kernel, or channels that the groups do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: Padding = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        num_kernels: int = 4,
    ) -> None:
        super().__init__()
        if num_kernels < 1:
            raise Mistake(f"a mixture needs at least one kernel, not {num_kernels}")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise Mistake(f"{groups} groups do not divide {in_channels} input and {out_channels} output channels")
        if isinstance(padding, str) and padding != "same":
            raise Mistake(f"padding is a number, a pair of numbers or 'same', not {padding!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.num_kernels = num_kernels
        self.kernel_shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(num_kernels, *self.kernel_shape))
        self.bias = nn.Parameter(torch.empty(num_kernels, out_channels)) if bias else None

    def convolve(self, images: Tensor, coefficients: Tensor) -> Tensor:
        """Mixes the kernels and convolves each image with its own.

        Args:
            images: [B, in_channels, H, W].
            coefficients: r, [B, n].

        Returns:
            [B, out_channels, H', W'].
        """
        note(self, "mixture", coefficients, "kernel", [f"kernel {i}" for i in range(self.num_kernels)])
        together = images_at_once(images, self.kernel_shape)
        if together >= images.shape[0]:
            return self._mix_and_convolve(images, coefficients)
        parts = zip(images.split(together), coefficients.split(together), strict=True)
        return torch.cat([self._mix_and_convolve(*part) for part in parts])

    def _mix_and_convolve(self, images: Tensor, coefficients: Tensor) -> Tensor:
        kernels = coefficients.to(self.weight.dtype) @ self.weight.flatten(1)
        bias = None if self.bias is None else coefficients.to(self.bias.dtype) @ self.bias
        return per_sample_conv2d(
            images,
            kernels.unflatten(1, self.kernel_shape),
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def init_like(self, conv: nn.Conv2d, init: Init) -> None:
        """Initialises the kernels from those of a convolution.

        Args:
            conv: Convolution of the same shape.
            init: `host`: independent kernels at the scale of `conv`'s, so that each starts as `conv` did; `copy`:
                copies of `conv`'s with a little noise, a warm start from trained weights; `paper`: left as they are.

        Raises:
            Mistake: An unknown `init`.
        """
        if init not in INITS:
            raise Mistake(f"init is one of {', '.join(INITS)}, not {init!r}")
        if init == "paper":
            return
        with torch.no_grad():
            kernel = conv.weight.detach().to(self.weight.dtype)
            scale = kernel.square().mean().sqrt()
            noise = scale * torch.randn(self.num_kernels, *self.kernel_shape, device=kernel.device)
            kernels = noise if init == "host" else kernel + _COPY_NOISE * noise
            self.weight.copy_(kernels.reshape(self.weight.shape))
            if self.bias is not None and conv.bias is not None:
                self.bias.copy_(conv.bias.expand_as(self.bias))

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, num_kernels={self.num_kernels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, groups={self.groups}"
        )


def geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """Constructor arguments of a mixture that takes the place of a convolution.

    Raises:
        Mistake: Padding with anything but zeros.
    """
    if conv.padding_mode != "zeros":
        raise Mistake(f"a convolution with {conv.padding_mode} padding cannot be made dynamic; only with zeros")
    padding: Any = conv.padding
    if isinstance(conv, Conv2dSame) or padding == "same":
        padding = "same"
    elif padding == "valid":
        padding = 0
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
    }


def pooled(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean over the pixels, [B, C, H, W] to [B, C], summed in at least float32 and handed on as `dtype`."""
    return images.mean((2, 3), dtype=torch.promote_types(images.dtype, torch.float32)).to(dtype)


def full_precision(images: Tensor) -> AbstractContextManager[Any]:
    """Suspends autocast on devices that have it: the meta device does not."""
    device = images.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def fan_in(kernel_shape: tuple[int, ...]) -> int:
    """Inputs of one output of a kernel [O, C / groups, kh, kw]."""
    return math.prod(kernel_shape[1:])
