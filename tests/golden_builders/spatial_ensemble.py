"""Builders of the recorded cases of Spatial Ensemble that are about the rule itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_modules.schedules import MultiStep, Schedule, WarmupCosine
from models.layers.momentum_bn import MomentumBatchNorm
from models.smoothing import renewed, spatial_temporal

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-6


def sts_update_units(case: Case) -> dict[str, Tensor]:
    keep, steps = case.config["p"], range(case.config["steps"])
    tensors = [name for name in case.state if name.startswith("tensor")]
    ways: dict[str, list[str]] = {"tensor": tensors} | {name: [name] for name in case.state if name not in tensors}
    results: dict[str, list[Tensor]] = {f"out.{name}": [] for name in case.state}
    for unit, names in ways.items():
        teacher = [case.state[name] for name in names]
        for step in steps:
            chosen = renewed(case.inputs[f"{unit}_draws"][step], keep)
            student = [case.inputs[f"{name}_student"][step] for name in names]
            if unit == "tensor":
                spatial_temporal(teacher, student, chosen.tolist(), case.config["m"][step])
            else:
                shape = [len(teacher[0]), *[1] * (teacher[0].ndim - 1)] if unit == "channel" else teacher[0].shape
                spatial_temporal(teacher, student, [chosen.view(shape)], case.config["m"][step])
            for name, value in zip(names, teacher, strict=True):
                results[f"out.{name}"].append(value.clone())
    return {name: torch.stack(values) for name, values in results.items()}


def schedules(case: Case) -> dict[str, Tensor]:
    config: dict[str, Any] = case.config
    steps = config["iters_per_epoch"] * config["epochs"]

    def table(schedule: Schedule, base: float) -> Tensor:
        return torch.from_numpy(schedule.table(base, config["iters_per_epoch"], steps))

    def after(schedule: Schedule, last: float | None = None) -> Tensor:
        """What is set after each step; what is set after the last one is never used."""
        values = table(schedule, config["lr"])
        return torch.cat([values[1:], values[-1:] if last is None else torch.tensor([last]).to(values)])

    # The published constructor's learning rate, with which the first step is taken.
    first = 1e-6
    return {
        "out.m": table(WarmupCosine(min_lr=1.0), config["param_momentum"]),
        "out.lr_warmcos": after(WarmupCosine(config["warmup_epochs"], warmup_lr=first, steady_warmup=True), 0.0),
        "out.lr_cos": after(WarmupCosine(), 0.0),
        "out.lr_multistep": after(MultiStep(config["milestones"])),
    }


def momentum_bn(case: Case) -> dict[str, Tensor]:
    results: dict[str, list[Tensor]] = {}
    for dims in (1, 2):
        norm = MomentumBatchNorm(case.config["c"], case.config["total_iters"])
        prefix = f"bn{dims}."
        norm.load_state_dict({k.removeprefix(prefix): v for k, v in case.state.items() if k.startswith(prefix)})
        for x in case.inputs[f"x{dims}"]:
            results.setdefault(f"out.y{dims}", []).append(norm(x))
            results.setdefault(f"out.running_mean{dims}", []).append(norm.running_mean.clone())
            results.setdefault(f"out.running_var{dims}", []).append(norm.running_var.clone())
            if dims == 1:
                results.setdefault("out.momentum", []).append(norm.share)
    return {name: torch.stack(values) for name, values in results.items()}


CASES = {"sts_update_units": sts_update_units, "schedules": schedules, "momentum_bn": momentum_bn}
