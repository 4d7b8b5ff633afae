"""How much of the compute of closed cells is saved in time, in Dynamic Routing.

    python -m benchmarks.dynamic_routing [--size 256 512] [--layers 16] [--width 64] [--batch 1] [--open 0.5]

The peer is the same network with every path open. Both run in turns on the same images; gates are computed on both
sides, and then replaced: by ones, or by draws that close a cell for an image with probability 1 - open. Weights are
random: which cells close does not matter here, only how many. Prints medians of CPU time on one thread, which other
work on the machine disturbs less than wall-clock, the compute of operators that ran, and the median over the repeats of
the saving of time as a share of the saving of compute.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from models.compute import executed
from models.segmenters.dynamic_routing import DynamicRouting

REPEATS = 7


class Dealt(nn.Module):
    """Computes the gates of a cell, and deals others.

    Args:
        gate: Of the cell.
        num_paths: Gates.
        rate: Probability that the cell is open for an image.
        seed: Of the draws, which are the same in every forward pass.
    """

    def __init__(self, gate: nn.Module, num_paths: int, rate: float, seed: int) -> None:
        super().__init__()
        self.gate, self.num_paths, self.rate, self.seed = gate, num_paths, rate, seed

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to gates [B, num_paths], all open or all closed."""
        self.gate(x)
        draws = torch.rand(len(x), generator=torch.Generator().manual_seed(self.seed)) < self.rate
        return draws.float().to(x.device)[:, None].expand(-1, self.num_paths)


def deal(network: DynamicRouting, rate: float) -> None:
    """Gives every cell but the initial one gates that are open for this share of the images."""
    for seed, (layer, _, cell) in enumerate(network.cells()):
        assert cell.gate is not None
        gate = cell.gate.gate if isinstance(cell.gate, Dealt) else cell.gate
        assert isinstance(gate, nn.Module)
        dealt = Dealt(gate, len(cell.transforms), rate if layer else 1.0, seed)
        cell.gate = dealt  # type: ignore[assignment]


def seconds(network: nn.Module, images: Tensor) -> float:
    """CPU time of one inference."""
    started = time.process_time()
    with torch.no_grad():
        network(images)
    return time.process_time() - started


def main() -> None:
    """Prints a line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512), help="height and width of the images")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=(1, 4), help="images that go through together")
    parser.add_argument("--open", type=float, default=0.5, help="probability that a cell is open for an image")
    parser.add_argument("--small-gate", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = DynamicRouting(19, options.layers, options.width, small_gate=options.small_gate).eval()
    size = "x".join(map(str, options.size))
    print(f"{options.layers} layers of width {options.width}, images of {size}, one thread, torch {torch.__version__}")
    for batch in options.batch:
        images = torch.randn(batch, 3, *options.size)
        rows: list[tuple[float, float]] = []
        for _ in range(REPEATS + 1):
            times = []
            for rate in (1.0, options.open):
                deal(network, rate)
                times.append(seconds(network, images))
            rows.append((times[0], times[1]))
        macs = []
        for rate in (1.0, options.open):
            deal(network, rate)
            macs.append(executed(network, images).macs)
        saved = 1 - macs[1] / macs[0]
        # The first repeat warms up.
        every, some = (statistics.median(column) for column in zip(*rows[1:], strict=True))
        ratio = statistics.median((1 - b / a) / saved for a, b in rows[1:])
        print(
            f"batch {batch}: all open {every * 1e3:.0f} ms, {options.open:.0%} open {some * 1e3:.0f} ms; saved "
            f"{saved:.1%} of {macs[0] / 1e9:.2f} G multiply-adds and {1 - some / every:.1%} of the time: "
            f"ratio {ratio:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
