"""How much of the compute that ADP-C skips is saved in time, and our HRNet beside timm's.

    python -m benchmarks.dense [--stages w48] [--height 512] [--width 1024] [--repeats 5] [--threads 1]

The peer of ADP-C is the same network, same weights, with every pixel computed; the compute is that of operators that
ran. Masks are smooth noise, cut so that a share of the pixels is kept after each exit, once as coherent as objects in a
street scene and once finer, and then those of real confidence, with thresholds set for the same shares on a smooth
image; the weights are random. timm's HRNet has the same stages and resizes with nearest neighbours, which costs less.
Sides run in turns. Times are processor seconds, least of the repeats: on an idle machine with one thread they are
wall-clock seconds, and on a busy one they are what other processes distort least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anytime import iterate
from models.compute import executed_by_parts
from models.layers.hrnet import HRNet
from models.segmenters.adpc import ADPC

POOLED_DIM = {"w18_small_v2": 64, "w48": 128}
# Shares of pixels kept after each of the first three exits; the first row is what the published compute of W48 implies.
KEPT = ((0.81, 0.61, 0.37), (0.6, 0.4, 0.2), (0.4, 0.2, 0.1), (0.2, 0.1, 0.05))
# Image pixels between the knots of the noise that masks are cut from.
KNOTS = {"coherent": 256, "finer": 96}


class Benchmarked(ADPC):
    """ADP-C that keeps a share of the pixels, those of its own least confidence or those where `score` is highest."""

    kept: tuple[float, ...] = (1.0, 1.0, 1.0)
    score: Tensor | None = None

    def unsure(self, exit: int, logits: Tensor) -> Tensor:
        """See `HRNetExits`."""
        score = -logits.softmax(1).amax(1) if self.score is None else self.score
        return score >= torch.quantile(score.flatten()[:: max(1, score.numel() // 2**20)], 1 - self.kept[exit])


def smooth(channels: int, size: Sequence[int], knots: int, generator: torch.Generator) -> Tensor:
    """Noise [1, channels, h, w] that is smooth between knots as many pixels apart."""
    coarse = [max(2, length // knots) for length in size]
    noise = torch.randn(1, channels, *coarse, generator=generator)
    return F.interpolate(noise, size=tuple(size), mode="bicubic", align_corners=False)


def randomise_norms(network: nn.Module) -> None:
    """Gives fresh norms statistics and scales that differ between channels."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)


def in_turns(sides: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Least processor seconds of each side."""
    for side in sides:
        side()
    rounds = []
    for _ in range(repeats):
        times = []
        for side in sides:
            started = time.process_time()
            side()
            times.append(time.process_time() - started)
        rounds.append(times)
    return [min(column) for column in zip(*rounds, strict=True)]


def adaptivity(stages: str, size: tuple[int, int], repeats: int) -> None:
    """Prints the saving of time by the saving of compute, for each kind of masks and each share kept."""
    network = Benchmarked(stages=stages, pooled_dim=POOLED_DIM[stages], init_std=None).eval()
    randomise_norms(network)
    network.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    images = smooth(3, size, 32, generator).contiguous(memory_format=torch.channels_last)
    quarter = (size[0] // 4, size[1] // 4)
    scores = {name: smooth(1, quarter, knots // 4, generator)[:, 0] for name, knots in KNOTS.items()}

    def infer(adaptive: bool) -> None:
        network.adaptive = adaptive
        for _ in iterate(network, images):
            pass

    network.adaptive = False
    every = executed_macs(network, images)[-1]
    print(f"{stages}, {size[0]}x{size[1]}: {every / 2**30:.1f} x 2**30 multiply-adds with every pixel computed")
    for name, score in (scores | {"confidence": None}).items():
        for kept in KEPT:
            network.kept, network.score, network.adaptive = kept, score, True
            spent = executed_macs(network, images)
            dense, adaptive = in_turns([lambda: infer(False), lambda: infer(True)], repeats)
            compute_saved, time_saved = 1 - spent[-1] / every, 1 - adaptive / dense
            ratio = f"{time_saved / compute_saved:.2f}" if compute_saved > 0.01 else "-"
            shares = "/".join(f"{share:.0%}" for share in kept)
            per_exit = " ".join(f"{macs / 2**30:.1f}" for macs in spent)
            print(
                f"{name:10} keeps {shares:14} executed {per_exit}; saved {compute_saved:.1%} of the compute, "
                f"{time_saved:.1%} of the time ({dense:.3f} to {adaptive:.3f} s): ratio {ratio}",
                flush=True,
            )


def executed_macs(network: Benchmarked, images: Tensor) -> list[float]:
    """Multiply-adds per image that ran up to each exit."""
    return [macs for _, macs in executed_by_parts(iterate(network, images), len(images))]


def trunks(stages: str, size: tuple[int, int], repeats: int) -> None:
    """Prints the time of our trunk and of timm's, in both memory formats."""
    ours: nn.Module = HRNet(stages).eval()
    theirs: Any = timm.create_model(f"hrnet_{stages}").eval()

    def stem_and_stages(images: Tensor) -> list[Tensor]:
        x = theirs.act1(theirs.bn1(theirs.conv1(images)))
        return theirs.stages(theirs.act2(theirs.bn2(theirs.conv2(x))))

    for name, layout in (("channels first", torch.contiguous_format), ("channels last", torch.channels_last)):
        images = torch.randn(1, 3, *size).contiguous(memory_format=layout)
        for network in (ours, theirs):
            network.to(memory_format=layout)
        mine, timms = in_turns([partial(ours, images), partial(stem_and_stages, images)], repeats)
        print(f"trunk {stages}, {name}: ours {mine:.3f} s, timm {timms:.3f} s: ratio {mine / timms:.2f}", flush=True)


def main() -> None:
    """Runs both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", choices=list(POOLED_DIM), default="w48")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = (options.height, options.width)
    with torch.inference_mode():
        trunks(options.stages, size, options.repeats)
    with torch.no_grad():
        adaptivity(options.stages, size, options.repeats)


if __name__ == "__main__":
    main()
