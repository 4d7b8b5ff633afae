"""One update of a ResNet-50 teacher: every rule and unit against Lightning's moving average, side by side.

    python -m benchmarks.smoothing

Lightning's is the update of its `EMAWeightAveraging`, buffers included; `torch._foreach_lerp_` over the parameters
alone is the least that a moving average takes. All take turns in each repeat; printed are medians of CPU time on one
thread, which other work on the machine disturbs less than wall-clock, and medians of the repeats' ratios to
Lightning's. A ratio below one: ours is faster.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from itertools import count
from typing import get_args

import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from lightning_modules.randomness import step_seed
from models.smoothing import Smoother, Unit

MOMENTUM, KEEP = 0.99, 0.7
WARM_UP, REPEATS = 2, 15


def lightning(student: nn.Module) -> Callable[[], None]:
    """The update of Lightning's moving average."""
    average = AveragedModel(student, avg_fn=get_ema_avg_fn(MOMENTUM), use_buffers=True)
    average.n_averaged.fill_(1)
    return lambda: average.update_parameters(student)


def least(student: nn.Module) -> Callable[[], None]:
    """One pass over the parameters."""
    teacher = [each.detach().clone() for each in student.parameters()]
    weights = [each.detach() for each in student.parameters()]
    return lambda: torch._foreach_lerp_(teacher, weights, 1 - MOMENTUM)


def ours(student: nn.Module, keep: float, momentum: float, unit: Unit = "tensor") -> Callable[[], None]:
    """The update of a rule, buffers averaged."""
    smoother = Smoother({"teacher": (student, copy.deepcopy(student))}, unit, "ema")
    steps = count()
    return lambda: smoother.update(momentum, keep, step_seed(0, -1, next(steps)))


def main() -> None:
    """Prints a line for each."""
    torch.set_num_threads(1)
    student = timm.create_model("resnet50")
    updates = {
        "Lightning": lightning(student),
        "torch._foreach_lerp_": least(student),
        "moving average": ours(student, 0.0, MOMENTUM),
        **{f"SE, {unit}": ours(student, KEEP, 0.0, unit) for unit in get_args(Unit)},
        **{f"STS, {unit}": ours(student, KEEP, MOMENTUM, unit) for unit in get_args(Unit)},
    }
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for repeat in range(WARM_UP + REPEATS):
        for name, update in updates.items():
            started = time.process_time()
            update()
            if repeat >= WARM_UP:
                seconds[name].append(time.process_time() - started)
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds["Lightning"], strict=True))
        print(f"{name:22s} {1e3 * statistics.median(own):7.1f} ms, {ratio:5.2f} times Lightning's")


if __name__ == "__main__":
    main()
