"""What removed filters save in time, and what it takes to plan it: ours against torch-pruning's own pruner.

    python -m benchmarks.pruning

For each network a share of the filters of every layer goes, by the L1 norm of the same random weights. Printed are the
share of the multiply-adds that is saved, the share of the time of a batch that is saved, what part of the first the
second is, the same with widths rounded up to a multiple of 8, seconds to plan and remove of both pruners, and the
multiply-adds that torch-pruning saves (`MetaPruner` with `GroupMagnitudeImportance(p=1)`, the same share of
channels). The networks of a line take turns in each repeat, on one thread; times are medians of CPU time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch_pruning as tp
from torch import Tensor, nn

from models.compute import count
from models.pruning.planning import Choice, plan_by_share
from models.pruning.removal import remove
from models.pruning.scores import score_by
from models.pruning.soundness import prunable_groups

NETWORKS = ("resnet18", "resnet50", "mobilenetv2_100", "convnext_tiny", "efficientnet_lite0")
SHARES = (0.3, 0.5, 0.7)
REPEATS = 5


def ours(network: nn.Module, images: Tensor, share: float, round_to: int = 1) -> nn.Module:
    """The network without a share of the filters of each layer."""
    groups, _ = prunable_groups(network, images[:1])
    score = score_by("l1")
    scores = {group.name: score(network, group) for group in groups}
    small = copy.deepcopy(network)
    remove(small, plan_by_share(network, groups, scores, share, Choice(round_to=round_to), {}))
    return small


def theirs(network: nn.Module, images: Tensor, share: float) -> nn.Module:
    """The same by torch-pruning's high-level pruner, which has to be told of the classifier."""
    small: Any = copy.deepcopy(network)
    pruner = tp.pruner.MetaPruner(
        small,
        images[:1],
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=share,
        ignored_layers=[small.get_classifier()],
    )
    pruner.step()
    pruned: nn.Module = small
    return pruned


def seconds(networks: Sequence[nn.Module], images: Tensor) -> list[float]:
    """Median CPU time of each for a batch."""
    times: list[list[float]] = [[] for _ in networks]
    with torch.no_grad():
        for repeat in range(REPEATS + 1):
            for network, measured in zip(networks, times, strict=True):
                started = time.process_time()
                network(images)
                if repeat:
                    measured.append(time.process_time() - started)
    return [statistics.median(each) for each in times]


def main() -> None:
    """Prints a line for each network and share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = (3, arguments.image_size, arguments.image_size)
    images = torch.randn(arguments.batch_size, *size)
    print(f"batch {arguments.batch_size}, {arguments.image_size} pixels, one thread, torch {torch.__version__}")
    print("network, filters that go: multiply-adds saved, time saved, ratio; rounded to 8: the same; seconds to plan")
    for name in arguments.networks:
        network = timm.create_model(name).eval()
        dense = count(network, size).macs
        for share in SHARES:
            started = time.process_time()
            small = ours(network, images, share)
            planned = time.process_time()
            peer = theirs(network, images, share)
            done = time.process_time()
            rounded = ours(network, images, share, round_to=8)
            whole, *took = seconds([network, small, rounded], images)
            parts = []
            for pruned, spent in zip((small, rounded), took, strict=True):
                macs, saved = 1 - count(pruned, size).macs / dense, 1 - spent / whole
                parts.append(f"{macs:.1%}, {saved:.1%}, {saved / macs:.2f}")
            left = 1 - count(peer, size).macs / dense
            print(
                f"{name}, {share:.0%}: {parts[0]}; rounded: {parts[1]}; ours {planned - started:.1f} s, torch-pruning "
                f"{done - planned:.1f} s for {left:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
