"""Layers with a kernel for each image: ours against timm's CondConv2d and against a loop, side by side.

    python -m benchmarks.dynamic_kernels

Each line is one convolution at a size of EfficientNet-CondConv or of a dynamic ResNet, or a whole network, in training
(forward, backward) and in evaluation. All three get the same input, kernels and coefficients, and their outputs are
compared before anything is timed. The routing itself, which is the same, is left out of the layers' times. They take
turns in each repeat; printed are medians of CPU time on one thread, which other work on the machine disturbs less than
wall-clock, and medians of the repeats' ratios. A ratio above one: ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
import torch
import torch.nn.functional as F
from timm.layers import CondConv2d as TimmCondConv2d
from torch import Tensor, nn

import models.backbones  # noqa: F401  registers our networks with timm
from models.layers.cond_conv import CondConv2d

EXPERTS = 4
REPEATS = 9


@dataclass(frozen=True)
class Shape:
    """A convolution of a published network, with the side of its input in pixels."""

    name: str
    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    groups: int
    side: int


SHAPES = [
    Shape("1x1 expand", 112, 672, 1, 1, 1, 14),
    Shape("1x1 project", 672, 112, 1, 1, 1, 14),
    Shape("1x1 late", 192, 1152, 1, 1, 1, 7),
    Shape("1x1 stride 2", 64, 128, 1, 2, 1, 28),
    Shape("depthwise 3x3", 672, 672, 3, 1, 672, 14),
    Shape("depthwise 5x5", 672, 672, 5, 1, 672, 14),
    Shape("depthwise 5x5 s2", 672, 672, 5, 2, 672, 14),
    Shape("3x3 narrow", 20, 20, 3, 1, 1, 16),
    Shape("3x3 early", 64, 64, 3, 1, 1, 28),
    Shape("3x3 late", 256, 256, 3, 1, 1, 7),
]
NETWORKS = {"efficientnet_cc_b0_4e": "condconv_efficientnet_b0_4e"}


class Looped(nn.Module):
    """The definition: one convolution for each image."""

    def __init__(self, layer: CondConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor, weights: Tensor) -> Tensor:
        """Images [B, C, H, W] and coefficients [B, n] to [B, O, H', W']."""
        layer = self.layer
        kernels = (weights @ layer.weight).unflatten(1, layer.kernel_shape)
        how = (layer.stride, layer.kernel_size[0] // 2, 1, layer.groups)
        singles = zip(images.split(1), kernels.unbind(), strict=True)
        return torch.cat([F.conv2d(image, kernel, None, *how) for image, kernel in singles])


def contestants(shape: Shape) -> dict[str, nn.Module]:
    """Ours, timm's and the loop, with equal experts."""
    sizes = (shape.in_channels, shape.out_channels, shape.kernel_size, shape.stride, shape.kernel_size // 2)
    ours = CondConv2d(*sizes, groups=shape.groups, num_experts=EXPERTS, routing="block")
    theirs = TimmCondConv2d(*sizes, groups=shape.groups, num_experts=EXPERTS)
    theirs.load_state_dict(ours.state_dict())
    return {"ours": ours, "timm": theirs, "loop": Looped(ours)}


def seconds(run: Callable[[], Tensor], training: bool) -> float:
    """CPU time of one forward pass, or of one forward and backward pass."""
    started = time.process_time()
    if training:
        run().sum().backward()
    else:
        with torch.no_grad():
            run()
    return time.process_time() - started


def compare(networks: dict[str, nn.Module], inputs: tuple[Tensor, ...], training: bool) -> dict[str, list[float]]:
    """Seconds of each repeat, by name."""
    outputs = []
    for network in networks.values():
        with torch.no_grad():
            outputs.append(network.eval()(*inputs))
        network.train(training)
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-3, atol=1e-4)
    rows: dict[str, list[float]] = {name: [] for name in networks}
    for repeat in range(REPEATS + 1):
        for name, network in networks.items():
            elapsed = seconds(partial(network, *inputs), training)
            if repeat:
                rows[name].append(elapsed)
    return rows


def report(name: str, mode: str, rows: dict[str, list[float]]) -> None:
    """One line of the table."""
    ours = rows["ours"]
    ratios = [
        f"{other} {statistics.median(times) * 1e3:.1f} ms, ratio "
        f"{statistics.median(b / a for a, b in zip(ours, times, strict=True)):.2f}"
        for other, times in rows.items()
        if other != "ours"
    ]
    print(f"{name:>22} {mode:5} ours {statistics.median(ours) * 1e3:.1f} ms; {'; '.join(ratios)}", flush=True)


def main() -> None:
    """Prints two lines for each layer and network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=96, help="of the networks")
    parser.add_argument("--channels-last", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    print(f"batch {arguments.batch_size}, one thread, {layout}, torch {torch.__version__}")
    for shape in SHAPES:
        images = torch.randn(arguments.batch_size, shape.in_channels, shape.side, shape.side)
        images = images.to(memory_format=layout).requires_grad_()
        weights = torch.rand(arguments.batch_size, EXPERTS).requires_grad_()
        layers = contestants(shape)
        for training in (True, False):
            report(shape.name, "train" if training else "eval", compare(layers, (images, weights), training))
    images = torch.randn(arguments.batch_size, 3, arguments.image_size, arguments.image_size)
    for theirs, ours in NETWORKS.items():
        networks = {"ours": timm.create_model(ours), "timm": timm.create_model(theirs)}
        networks["ours"].load_state_dict(networks["timm"].state_dict())
        for network in networks.values():
            network.to(memory_format=layout)
        for training in (True, False):
            rows = compare(networks, (images.to(memory_format=layout),), training)
            report(theirs, "train" if training else "eval", rows)


if __name__ == "__main__":
    main()
