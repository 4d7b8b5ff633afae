"""How much of the compute of closed blocks is saved in time, in DyFPN.

    python -m benchmarks.dyfpn [--size 512] [--batch 1 4] [--width 256] [--open 0.5] [--backbone resnet50]

The peers are the inception pyramid, which is DyFPN with every block open, and the plain pyramid, which is DyFPN with
every block closed and without gates. All run in turns, in one process, on the same maps of the backbone. DyFPN computes
its gates, and is then dealt others: a block is open for an image with probability `open`. Weights are random: which
blocks are open does not matter here, only how many.

Prints medians of CPU time on one thread, which other work on the machine disturbs less than wall-clock, and two ratios,
the medians over the repeats. Against the inception pyramid: the share of its time that is saved over the share of its
multiply-adds that is saved, as operators ran. Against the plain pyramid: the same of what the inception pyramid takes
more than the plain one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.compute import flop_counter
from models.detectors.features import Features
from models.necks import FPN, DyFPN, InceptionFPN

REPEATS = 5


class Dealt(nn.Module):
    """Computes the gates of a pyramid, and deals others.

    Args:
        gates: Of the pyramid.
        rate: Probability that a block is open for an image.
        seed: Of the draws, which are the same in every forward pass.
    """

    def __init__(self, gates: nn.Module, rate: float, seed: int) -> None:
        super().__init__()
        self.gates, self.rate, self.seed = gates, rate, seed

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C_i, h_i, w_i] to scores [B, 2], of which the better one is better by 1."""
        generator = torch.Generator().manual_seed(self.seed)
        scores = []
        for own in self.gates(maps):
            opened = (torch.rand(len(own), generator=generator) < self.rate).to(own.device)
            scores.append(torch.stack([~opened, opened], 1).to(own.dtype))
        return scores


def seconds(neck: nn.Module, maps: Sequence[Tensor]) -> float:
    """CPU time of one inference."""
    started = time.process_time()
    with torch.no_grad():
        neck(maps)
    return time.process_time() - started


def macs(neck: nn.Module, maps: Sequence[Tensor]) -> float:
    """Multiply-adds of the operators that ran in one inference."""
    with torch.no_grad(), flop_counter() as counter:
        neck(maps)
    return counter.get_total_flops() / 2


def main() -> None:
    """Prints a line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="height and width of the images")
    parser.add_argument("--batch", type=int, nargs="+", default=(1, 4), help="images that go through together")
    parser.add_argument("--width", type=int, default=256, help="channels of every level")
    parser.add_argument("--open", type=float, default=0.5, help="probability that a block is open for an image")
    parser.add_argument("--backbone", default="resnet50", help="timm's name of a network with maps of strides 4 to 32")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,), help="of the draws, one after the other")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = Features(options.backbone, levels=range(-4, 0), frozen_stages=0).eval()
    chans = features.channels
    necks: dict[str, nn.Module] = {
        "plain": FPN(chans, options.width, "pool").eval(),
        "inception": InceptionFPN(chans, options.width, "pool").eval(),
        "DyFPN": DyFPN(chans, options.width, "pool").eval(),
    }
    gates = necks["DyFPN"].get_submodule("gates")
    print(f"{options.backbone}, images of {options.size}x{options.size}, width {options.width}, one thread")
    for batch in options.batch:
        images = torch.randn(batch, 3, options.size, options.size)
        with torch.no_grad():
            maps = [x for x, _ in features(images, torch.zeros_like(images[:, 0], dtype=torch.bool))]
        for seed in options.seeds:
            necks["DyFPN"].gates = Dealt(gates, options.open, seed)
            compute = {name: macs(neck, maps) for name, neck in necks.items()}
            # The count has warmed them up.
            rows = [{name: seconds(neck, maps) for name, neck in necks.items()} for _ in range(REPEATS)]
            median = {name: statistics.median(row[name] for row in rows) for name in necks}
            saved = compute["inception"] - compute["DyFPN"]
            if not saved:
                print(f"batch {batch}, draw {seed}: every block open")
                continue
            whole = statistics.median(
                (1 - row["DyFPN"] / row["inception"]) / (saved / compute["inception"]) for row in rows
            )
            more = statistics.median(
                (row["inception"] - row["DyFPN"])
                / (row["inception"] - row["plain"])
                / (saved / (compute["inception"] - compute["plain"]))
                for row in rows
            )
            times = ", ".join(f"{name} {median[name] * 1e3:.0f} ms" for name in necks)
            print(
                f"batch {batch}, draw {seed}: {times}; saved {saved / compute['inception']:.1%} of "
                f"{compute['inception'] / 1e9:.1f} G multiply-adds; saving of time over saving of compute "
                f"{whole:.3f} against inception, {more:.3f} of what inception adds to the plain one",
                flush=True,
            )


if __name__ == "__main__":
    main()
