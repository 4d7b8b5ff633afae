"""Dynamic convolution: attention over convolution kernels.

Reference: "Dynamic Convolution: Attention over Convolution Kernels", arXiv 1912.03458, equations 1 and 3.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from models.layers.kernel_mixture import Init, KernelMixture, full_precision, geometry, pooled
from models.layers.per_sample_conv import Padding
from models.mistakes import Mistake

HIDDEN_RULES = ("plus_one", "paper")


class KernelAttention(nn.Module):
    """Attention over K kernels, `pi(x) = softmax(fc2(relu(fc1(GAP(x)))) / T)`.

    The temperature T is a buffer, so that a checkpoint taken while it is annealed goes on from there.

    Args:
        in_chans: C.
        num_kernels: K.
        ratio: Hidden width relative to C.
        hidden_rule: `paper`: int(C * ratio), at least one; `plus_one`, of the implementation whose checkpoints
            circulate: int(C * ratio) + 1, and K for images of three channels.
        temperature: T at the start.

    Raises:
        Mistake: An unknown rule, or a ratio or temperature that is not positive.
    """

    temperature: Tensor

    def __init__(
        self,
        in_chans: int,
        num_kernels: int = 4,
        ratio: float = 0.25,
        hidden_rule: Literal["plus_one", "paper"] = "plus_one",
        temperature: float = 30.0,
    ) -> None:
        super().__init__()
        if hidden_rule not in HIDDEN_RULES:
            raise Mistake(f"hidden_rule is one of {', '.join(HIDDEN_RULES)}, not {hidden_rule!r}")
        if ratio <= 0:
            raise Mistake(f"the hidden width is a positive ratio of the channels, not {ratio}")
        if not temperature > 0:
            raise Mistake(f"a temperature is positive, not {temperature}")
        if hidden_rule == "paper":
            hidden = max(int(in_chans * ratio), 1)
        else:
            hidden = num_kernels if in_chans == 3 else int(in_chans * ratio) + 1
        self.fc1 = nn.Linear(in_chans, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, num_kernels)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc2.bias)
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to pi [B, K], in float32 under autocast too."""
        with full_precision(images):
            logits = self.fc2(self.fc1(pooled(images, self.fc1.weight.dtype)).relu())
            return (logits / self.temperature).softmax(1)


class DynamicConv2d(KernelMixture):
    """K kernels and biases, mixed per image by attention with a temperature.

    The parameter `weight` is [K, out_channels, in_channels / groups, kh, kw].

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: See `KernelMixture`.
        num_kernels: K.
        ratio, hidden_rule, temperature: See `KernelAttention`. Plain softmax (T = 1) trains badly in deep networks:
            start high and let `callbacks.Annealing` move it down.

    Raises:
        Mistake: Options that `KernelAttention` or `KernelMixture` refuses.
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
        ratio: float = 0.25,
        hidden_rule: Literal["plus_one", "paper"] = "plus_one",
        temperature: float = 30.0,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, num_kernels=num_kernels
        )
        self.attention = KernelAttention(in_channels, num_kernels, ratio, hidden_rule, temperature)
        self.reset_parameters()

    @classmethod
    def like(
        cls,
        conv: nn.Conv2d,
        num_kernels: int = 4,
        ratio: float = 0.25,
        hidden_rule: Literal["plus_one", "paper"] = "plus_one",
        temperature: float = 30.0,
        init: Init = "host",
    ) -> Self:
        """A layer that takes the place of a convolution.

        Args:
            conv: The convolution.
            num_kernels, ratio, hidden_rule, temperature: See the constructor.
            init: See `KernelMixture.init_like`.
        """
        layer = cls(
            **geometry(conv), num_kernels=num_kernels, ratio=ratio, hidden_rule=hidden_rule, temperature=temperature
        )
        layer.init_like(conv, init)
        return layer

    def reset_parameters(self) -> None:
        """Every kernel as a layer before a ReLU, no bias."""
        for kernel in self.weight.detach():
            nn.init.kaiming_uniform_(kernel)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H', W']."""
        return self.convolve(images, self.attention(images))
