"""CondConv: a convolution conditionally parameterised by its input.

Reference: "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", arXiv 1904.04971, equation 1.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from torch import Tensor, nn

from models.layers.kernel_mixture import Init, KernelMixture, fan_in, full_precision, geometry, pooled
from models.layers.per_sample_conv import Padding
from models.mistakes import Mistake

GATES = ("sigmoid", "softmax")


class Routing(nn.Linear):
    """Coefficients of the experts, `r(x) = gate(R GAP(x) + c)`.

    Args:
        in_chans: C.
        num_experts: How many experts there are, n.
        gate: `sigmoid`, as published: the experts do not compete and the coefficients do not sum to one; `softmax`, of
            the paper's ablation.
        dropout: Rate of dropout on the pooled input.

    Raises:
        Mistake: An unknown gate.
    """

    def __init__(
        self,
        in_chans: int,
        num_experts: int,
        gate: Literal["sigmoid", "softmax"] = "sigmoid",
        dropout: float = 0.0,
    ) -> None:
        if gate not in GATES:
            raise Mistake(f"a routing gate is one of {', '.join(GATES)}, not {gate!r}")
        super().__init__(in_chans, num_experts)
        self.gate = gate
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Glorot uniform and no bias, so that sigmoids start near one half."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] to coefficients [B, n], in float32 under autocast too.

        Raises:
            Mistake: Another number of channels than C, as in a block that routes from a part of its input.
        """
        if input.shape[1] != self.in_features:
            raise Mistake(
                f"this routing reads {self.in_features} channels, not {input.shape[1]}: a block that splits its input "
                "cannot share a routing; choose routing='layer'"
            )
        with full_precision(input):
            logits = super().forward(self.dropout(pooled(input, self.weight.dtype)))
            return logits.sigmoid() if self.gate == "sigmoid" else logits.softmax(1)


class CondConv2d(KernelMixture):
    """n expert kernels, mixed per image by coefficients of its content.

    The coefficients come from the layer's own `routing_fn`, or, with `routing="block"`, from outside: from the second
    argument of `forward`, or from a block that shares one routing among its layers (see `share_routing`).

    The parameter `weight` is [n, out_channels * in_channels / groups * kh * kw], as in published checkpoints.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: See `KernelMixture`.
        num_experts: n; 1 is a gated static convolution.
        routing: Whether the layer has a routing of its own (`layer`) or not (`block`).
        gate, routing_dropout: See `Routing`.

    Raises:
        Mistake: An unknown option, or sizes that `KernelMixture` refuses.
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
        num_experts: int = 4,
        routing: Literal["layer", "block"] = "layer",
        gate: Literal["sigmoid", "softmax"] = "sigmoid",
        routing_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, num_kernels=num_experts
        )
        if routing not in ("layer", "block"):
            raise Mistake(f"routing is one of layer, block, not {routing!r}")
        self.weight = nn.Parameter(self.weight.detach().flatten(1))
        self.gate, self.routing_dropout = gate, routing_dropout
        self.routing_fn = Routing(in_channels, num_experts, gate, routing_dropout) if routing == "layer" else None
        # What the block shares, for as long as the block runs.
        self.handed: Tensor | None = None
        self.reset_parameters()

    @classmethod
    def like(
        cls,
        conv: nn.Conv2d,
        num_experts: int = 4,
        routing: Literal["layer", "block"] = "layer",
        gate: Literal["sigmoid", "softmax"] = "sigmoid",
        routing_dropout: float = 0.0,
        init: Init = "host",
    ) -> Self:
        """A layer that takes the place of a convolution.

        Args:
            conv: The convolution.
            num_experts, routing, gate, routing_dropout: See the constructor.
            init: See `KernelMixture.init_like`.
        """
        layer = cls(
            **geometry(conv), num_experts=num_experts, routing=routing, gate=gate, routing_dropout=routing_dropout
        )
        layer.init_like(conv, init)
        return layer

    def join(self, block: nn.Module) -> None:
        """Shares the routing of its block, which gets one if it has none; a layer with one of its own keeps that."""
        if self.routing_fn is None and not isinstance(getattr(block, "routing_fn", None), Routing):
            share_routing(block)

    def reset_parameters(self) -> None:
        """Every expert as PyTorch initialises a convolution."""
        fan = fan_in(self.kernel_shape)
        for expert in self.weight.detach():
            nn.init.kaiming_uniform_(expert.view(self.kernel_shape), a=math.sqrt(5))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(fan), 1 / math.sqrt(fan))

    def forward(self, images: Tensor, routing_weights: Tensor | None = None) -> Tensor:
        """Convolves each image with its own mixture.

        Args:
            images: [B, in_channels, H, W].
            routing_weights: [B, n]; None for the layer's or its block's own.

        Returns:
            [B, out_channels, H', W'].

        Raises:
            Mistake: No coefficients given, and nothing that computes them.
        """
        if routing_weights is None:
            routing_weights = self.handed if self.routing_fn is None else self.routing_fn(images)
        if routing_weights is None:
            raise Mistake("this layer has no routing of its own: give it routing_weights, or call share_routing()")
        return self.convolve(images, routing_weights)


def share_routing(block: nn.Module) -> None:
    """Gives a block one routing, a function of the block's input, for all its CondConv layers that have none.

    The block gets a child `routing_fn` and two hooks. A block that is itself a CondConv layer gets its own routing.

    Args:
        block: Any module whose first argument is the input [B, C, H, W] of its first convolution.

    Raises:
        Mistake: No layer in the block needs a routing, or they differ in experts or gate.
    """
    layers = _routed(block)
    if not layers:
        raise Mistake(f"no CondConv layer without a routing of its own in {type(block).__name__}")
    options = {(layer.num_kernels, layer.gate, layer.routing_dropout) for layer in layers}
    if len(options) > 1:
        raise Mistake(f"layers that share a routing have the same experts, gate and dropout, not {sorted(options)}")
    num_experts, gate, dropout = options.pop()
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d | KernelMixture)]
    weight = layers[0].weight
    routing = Routing(convolutions[0].in_channels, num_experts, gate, dropout).to(weight.device, weight.dtype)
    block.routing_fn = routing
    if block is not layers[0]:
        block.register_forward_pre_hook(_hand_out)
        block.register_forward_hook(_take_back)


# The hooks know nothing but the block they are called with: a copy of the block shares among its own layers.
def _routed(block: nn.Module) -> list[CondConv2d]:
    return [module for module in block.modules() if isinstance(module, CondConv2d) and module.routing_fn is None]


def _hand_out(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    coefficients = block.get_submodule("routing_fn")(inputs[0])
    for layer in _routed(block):
        layer.handed = coefficients


def _take_back(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    for layer in _routed(block):
        layer.handed = None
