"""How much of the compute that adaptive networks save is saved in time: real early exit and resolution per image.

    python -m benchmarks.adaptive [--threads 1] [--batch 64] [--share 0.5] [--min_leaving 0.05]

The peer is the same network doing all its work: every exit for every image, or every image at the highest resolution.
Thresholds are solved for the budget on other images of the same kind; DRNet is dealt the mix of its resolutions that
costs as much. Weights are random, with norm statistics taken from data: which images leave does not matter here, only
how many. Both sides run in turns on the same batches; the compute is that of operators that ran. Prints for each
network the saving of time by the saving of compute, and, since a multiply-add of one exit may take longer than that of
another, also by the saving of time that would be if images left for free and a smaller batch took proportionally less:
the sum over exits (or resolutions) of the time of the full batch there, times the share of the images that reach it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from models.anytime import MIN_LEAVING, ExitThresholds, MultiExit, Outcomes, Policy, exit_costs, run
from models.classifiers import DVT, DRNet, RANet
from models.compute import executed

Size = tuple[int, int, int]
# Network and the size of its images.
MULTI_EXIT: dict[str, tuple[Callable[[], nn.Module], Size]] = {
    "RANet, CIFAR-10, 4-2-1-1": (
        lambda: RANet(growth_factors=(4, 2, 1, 1), bottleneck_factors=(4, 2, 1, 1), scales=(1, 2, 3, 3)),
        (3, 32, 32),
    ),
    "DVT, DeiT 192 x 6, 7-10-14": (lambda: DVT(embed_dim=192, depth=6, num_heads=3, image_size=112), (3, 112, 112)),
}
VALIDATION_BATCHES = 8
BATCHES = 4
REPEATS = 7


class EarlyExit(nn.Module):
    """`run` as a network, for counting what it executes."""

    def __init__(self, network: nn.Module, policy: Policy, min_leaving: float) -> None:
        super().__init__()
        self.network, self.policy, self.min_leaving = network, policy, min_leaving

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the exits taken, and these exits."""
        assert isinstance(self.network, MultiExit)
        return run(self.network, images, self.policy, self.min_leaving)


@dataclass(frozen=True)
class Savings:
    """Seconds a batch of all work, of the adaptive run and of a free one; the adaptive share of the compute."""

    every: float
    early: float
    free: float
    compute: float

    def __str__(self) -> str:
        time_saved, compute_saved, most = (
            1 - x for x in (self.early / self.every, self.compute, self.free / self.every)
        )
        return (
            f"all work {self.every * 1e3:.1f} ms, adaptive {self.early * 1e3:.1f} ms; saved {compute_saved:.1%} of "
            f"the compute and {time_saved:.1%} of the time: ratio {time_saved / compute_saved:.3f} "
            f"({time_saved / most:.3f} of what free compaction would save)"
        )


def images(count: int, size: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Noise of a contrast and colour of its own in each image, so that networks are not equally sure of all."""
    contrast = 2 * torch.rand(count, 1, 1, 1, generator=generator)
    colour = torch.randn(count, size[0], 1, 1, generator=generator)
    return colour + contrast * torch.randn(count, *size, generator=generator)


def policy_for(network: nn.Module, size: tuple[int, int, int], batch: int, share: float) -> Policy:
    """Gives the norms of a fresh network statistics, and solves its thresholds for a share of its cost."""
    assert isinstance(network, MultiExit)
    generator = torch.Generator().manual_seed(1)
    batches = [images(batch, size, generator) for _ in range(VALIDATION_BATCHES)]
    network.train()
    for each in batches:
        network(each)
    network.eval()
    logits = [torch.cat(exit) for exit in zip(*(network(each) for each in batches), strict=True)]
    outcomes = Outcomes.from_logits(logits, torch.zeros(len(logits[0]), dtype=torch.long))
    return ExitThresholds.solve(outcomes, exit_costs(network, size)).policy(share)


def measure(network: nn.Module, early: EarlyExit, batches: list[Tensor]) -> Savings:
    """Times both sides in turns; medians over repeats, means over batches."""
    assert isinstance(network, MultiExit)
    sums = []
    for batch in batches:
        exits = early(batch)[1]
        reach = [1.0, *((exits >= exit).float().mean().item() for exit in range(network.num_exits))]
        rows = []
        for _ in range(REPEATS):
            parts = []
            started = time.perf_counter()
            state = network.start(batch)
            for exit in range(network.num_exits):
                parts.append(time.perf_counter() - started)
                started = time.perf_counter()
                _, state = network.advance(exit, state)
            parts.append(time.perf_counter() - started)
            free = sum(share * part for share, part in zip(reach, parts, strict=True))
            rows.append((seconds(network, batch), seconds(early, batch), free))
        every, leaving, free = (statistics.median(column) for column in zip(*rows, strict=True))
        sums.append((every, leaving, free, executed(early, batch).macs / executed(network, batch).macs))
    return Savings(*(statistics.mean(column) for column in zip(*sums, strict=True)))


class Dealt(nn.Module):
    """Scores that pick a given resolution for each image of a batch."""

    def __init__(self, choice: Tensor, num_candidates: int) -> None:
        super().__init__()
        self.scores = nn.functional.one_hot(choice, num_candidates).float()

    def forward(self, images: Tensor) -> Tensor:
        """[B, ...] to scores [B, candidates]."""
        return self.scores


def measure_drnet(batch: int, share: float) -> Savings:
    """DRNet on MobileNetV2: every image at 224 pixels, against a mix of 224, 168 and 112 that costs the share."""
    network = DRNet(timm.create_model("mobilenetv2_100"), nn.Identity(), (224, 168, 112)).eval()
    low, middle = network.costs[2] / network.dense, network.costs[1] / network.dense
    # Of the images that are not at the highest resolution, half are at each of the others.
    smaller = (1 - share) / (1 - (low + middle) / 2)
    choice = (torch.rand(batch, generator=torch.Generator().manual_seed(0)) < smaller).long()
    choice[choice.nonzero().squeeze(1)[::2]] = 2
    high, mixed = Dealt(torch.zeros_like(choice), 3), Dealt(choice, 3)
    data = images(batch, (3, 224, 224), torch.Generator().manual_seed(2))
    rows = []
    compute = []
    for _ in range(REPEATS):
        times = []
        for predictor in (high, mixed, *(Dealt(torch.full_like(choice, j), 3) for j in (1, 2))):
            network.predictor = predictor
            times.append(seconds(network, data))
        of_resolution = (times[0], times[2], times[3])
        free = sum(of_resolution[j] * (choice == j).float().mean().item() for j in range(3))
        rows.append((times[0], times[1], free))
    for predictor in (mixed, high):
        network.predictor = predictor
        compute.append(executed(network, data).macs)
    every, leaving, free = (statistics.median(column) for column in zip(*rows, strict=True))
    return Savings(every, leaving, free, compute[0] / compute[1])


def seconds(network: nn.Module, batch: Tensor) -> float:
    """Time of one inference."""
    started = time.perf_counter()
    network(batch)
    return time.perf_counter() - started


@torch.no_grad()
def main() -> None:
    """Prints a line for each network."""
    parser = argparse.ArgumentParser(description="Time saved by adaptive networks, by compute saved.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.5, help="budget, as a share of the last exit's cost")
    parser.add_argument("--min_leaving", type=float, default=MIN_LEAVING, help="see models.anytime.run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, (build, size) in MULTI_EXIT.items():
        torch.manual_seed(0)
        network = build()
        policy = policy_for(network, size, options.batch, options.share)
        generator = torch.Generator().manual_seed(2)
        batches = [images(options.batch, size, generator) for _ in range(BATCHES)]
        savings = measure(network, EarlyExit(network, policy, options.min_leaving), batches)
        print(f"{name}, batch {options.batch}, threads {options.threads}: {savings}", flush=True)
    savings = measure_drnet(options.batch, options.share)
    print(f"DRNet, MobileNetV2, 224-168-112, batch {options.batch}, threads {options.threads}: {savings}")


if __name__ == "__main__":
    main()
