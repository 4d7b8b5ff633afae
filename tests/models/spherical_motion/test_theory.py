"""Formulas of equilibrium, next to the sheet's numbers and to optimisers that walk at random."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.optim import Lion

from models.spherical_motion import (
    Setting,
    assumptions,
    drops,
    effective_learning_rate,
    equilibrium_angle,
    equilibrium_norm,
    followed,
    late_from,
    random_walk,
    remarks,
    rescaling,
    setting_of,
    steps_to_equilibrium,
    time_constant,
)

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1),
    "sgdm": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.5, betas=(0.9, 0.99)),
    "lion": lambda p: Lion(p, 1e-3, weight_decay=2.0, betas=(0.9, 0.98)),
}


def of(optimizer: Callable[..., Any]) -> Setting:
    built = optimizer([torch.zeros(1, requires_grad=True)])
    return setting_of(type(built).__name__, built.param_groups[0])


@pytest.mark.parametrize("theory", OPTIMIZERS)
def test_a_random_walk_settles_where_theory_says(theory: str) -> None:
    setting = of(OPTIMIZERS[theory])
    assert setting.theory == theory
    # Those that do not wait for the gradient's size are far from equilibrium for long, and begin near it.
    length = 1.0 if setting.power == 4 else 1.1 * equilibrium_norm(setting, 0.0, 512)
    walk = random_walk(OPTIMIZERS[theory], 1000, size=512, length=length)
    late = slice(600, None)
    share = 0.01 if setting.power == 4 else 0.04
    assert walk.angles[late].mean().item() == pytest.approx(equilibrium_angle(setting), rel=share)
    norm = equilibrium_norm(setting, walk.squares[late].mean().item(), 512)
    assert walk.norms[late].mean().item() == pytest.approx(norm, rel=share)


def test_the_approach_takes_the_time_constant() -> None:
    slow = lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.001)  # noqa: E731
    walk = random_walk(slow, 250)
    setting = of(slow)
    left = 1 - walk.norms.pow(4).mean(1) / equilibrium_norm(setting, walk.squares.mean().item(), 2048) ** 4
    # Between two steps, once the momentum has set in.
    assert 150 / math.log(left[50] / left[200]) == pytest.approx(time_constant(setting), rel=0.05)


@pytest.mark.parametrize(
    ("lr", "decay", "momentum", "angle", "tau"),
    [
        (0.2, 1e-4, 0.0, 6.325e-3, 12_500),
        (0.2, 1e-4, 0.9, 4.588e-3, 1_250),
        (0.001, 1e-4, 0.9, 3.244e-4, 250_000),
        (0.02, 1e-4, 0.9, 1.451e-3, 12_500),
    ],
)
def test_the_papers_settings(lr: float, decay: float, momentum: float, angle: float, tau: float) -> None:
    setting = setting_of("SGD", {"lr": lr, "weight_decay": decay, "momentum": momentum})
    assert equilibrium_angle(setting) == pytest.approx(angle, rel=2e-4)
    assert time_constant(setting) == pytest.approx(tau)


def test_what_has_no_theory_has_no_equilibrium() -> None:
    sgd = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
    for name, group in {
        "SGD": sgd | {"nesterov": True},
        "Muon": sgd,
        "Adam": {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.99), "decoupled_weight_decay": False},
    }.items():
        setting = setting_of(name, group)
        assert setting.theory == "none"
        assert math.isnan(equilibrium_angle(setting))
        assert math.isnan(equilibrium_norm(setting, 1.0, 1))
        assert math.isinf(time_constant(setting))
    assert setting_of("Muon", sgd, "sgdm").momentum == 0.9
    assert math.isnan(equilibrium_angle(setting_of("SGD", sgd | {"weight_decay": 0.0})))


def test_effective_rates_and_rescaling_keep_the_angle() -> None:
    for power, theory in ((4, "sgdm"), (2, "adamw")):
        setting = Setting(theory, 0.1, 0.01, 0.9)  # type: ignore[arg-type]
        dropped = replace(setting, lr=0.01)
        norm = equilibrium_norm(setting, 3.0, 100)
        assert norm * rescaling(setting, 10) == pytest.approx(equilibrium_norm(dropped, 3.0, 100), rel=1e-4)
        ratio = effective_learning_rate(dropped, norm * rescaling(setting, 10)) / effective_learning_rate(setting, norm)
        assert ratio == pytest.approx(equilibrium_angle(dropped) / equilibrium_angle(setting))
        assert setting.power == power


def test_a_drop_needs_time() -> None:
    setting = Setting("sgdm", 0.1, 1e-4, 0.9)
    found = drops(setting, [0.0, 0.1, *[0.1] * 3000, *[0.01] * 3000, *[0.001] * 10])
    assert [(each.step, each.left) for each in found] == [(3002, 3000), (6002, 10)]
    assert found[0].factor == pytest.approx(10)
    # Pure decay: |w|^2 has to fall by sqrt(k), and falls by 2 eta lambda / (1 - alpha) a step.
    decay = 2 * 0.01 * 1e-4 / 0.1
    assert found[0].takes == pytest.approx(math.log(math.sqrt(10)) / decay)
    assert found[0].takes == steps_to_equilibrium(replace(setting, lr=0.01), found[0].factor)
    assert remarks(setting, [0.1] * 3000 + [0.01] * 3000) == [
        "after the drop at step 3000 equilibrium takes 57,565 steps; 3,000 are left"
    ]
    assert drops(setting, [0.1 * 0.99**i for i in range(100)]) == []


def test_weights_lag_behind_a_schedule_as_a_walk_does() -> None:
    rates = [0.1] * 60 + [0.01] * 300
    setting = Setting("sgdm", 0.1, 0.05, 0.9)
    shares = followed(setting, rates)
    assert shares[59] == pytest.approx(1)
    assert shares[60] == pytest.approx(math.sqrt(0.1), rel=0.05)
    tau = time_constant(replace(setting, lr=0.01))
    at = 60 + round(2 * tau) - 1
    assert shares[at] == pytest.approx((1 + 9 * math.exp(-2)) ** -0.5, rel=0.01)
    cosine = [0.05 * (1 + math.cos(math.pi * i / 400)) for i in range(400)]
    late = late_from(setting, cosine)
    assert late is not None
    assert 250 < late < 400
    assert remarks(setting, cosine) == [
        f"from step {late} on the learning rate changes faster than weights follow: angular updates stay more than "
        "10 % from their equilibrium's"
    ]
    assert late_from(setting, [0.1] * 100) is None
    # Weight decay without time: never in equilibrium again.
    assert late_from(replace(setting, weight_decay=1e-6), rates) == 60


def test_assumptions_of_the_theorems() -> None:
    steady = [1.0 + 0.1 * (-1) ** i for i in range(200)]
    good = assumptions(Setting("sgd", 0.1, 1e-3), steady)
    assert all(good.values())
    assert not assumptions(Setting("sgd", 0.5, 0.1), steady)["small_steps"]
    assert not assumptions(Setting("sgdm", 0.1, 0.05, 0.95), steady)["small_momentum"]
    assert not assumptions(Setting("sgd", 0.1, 1e-3), [*steady[1:], 0.0])["bounded"]
    assert not assumptions(Setting("sgd", 0.1, 1e-3), [1.0 + i for i in range(200)])["steady"]
