"""What a smoothing rule promises, whatever the unit: on its own, in the mean over draws, and of its ages."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from models.smoothing import Smoother, Unit, effective_momentum, moving_average, renewed, spatial_ensemble, units

UNITS = get_args(Unit)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=False), nn.Linear(5, 7))


def smoother(unit: Unit, keep: dict[str, float] | None = None, batch_norm: str = "own") -> Smoother:
    """Of a teacher and a student that have nothing in common."""
    return Smoother({"teacher": (network(1), network(2))}, unit, batch_norm, keep)  # type: ignore[arg-type]


def move_student(smoother: Smoother, step: int) -> list[Tensor]:
    """Gives the student weights of its own at each step."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in smoother.student:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return [tensor.detach().clone() for tensor in smoother.student]


def parts(unit: Unit, names: Sequence[str], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The numbers of each unit, in the order of the units' ages."""
    if unit == "tensor":
        return [tensor.flatten() for tensor in tensors]
    if unit == "layer":
        modules = [name.rpartition(".")[0] for name in names]
        pairs = list(zip(modules, tensors, strict=True))
        return [torch.cat([x.flatten() for other, x in pairs if other == module]) for module in modules]
    if unit == "channel":
        return [row.flatten() for tensor in tensors for row in tensor]
    return [number for tensor in tensors for number in tensor.flatten().unbind()]


@pytest.mark.parametrize("unit", UNITS)
def test_without_keeping_it_is_the_moving_average_to_the_bit(unit: Unit) -> None:
    with_units = smoother(unit)
    teacher, student = ([x.detach().clone() for x in each] for each in (with_units.teacher, with_units.student))
    with_units.update(0.9, 0.0, 3)
    by_hand = [0.9 * a + 0.1 * b for a, b in zip(teacher, student, strict=True)]
    moving_average(teacher, student, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(with_units.teacher, teacher, strict=True))
    torch.testing.assert_close(teacher, by_hand, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("momentum", "keep"), [(1.0, 0.5), (0.5, 1.0)])
def test_what_never_moves(unit: Unit, momentum: float, keep: float) -> None:
    each = smoother(unit)
    before = [x.detach().clone() for x in each.teacher]
    each.update(momentum, keep, 3)
    assert all(torch.equal(a, b) for a, b in zip(each.teacher, before, strict=True))
    assert not each.renewed.any()
    assert (each.ages == 1).all()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("at_a_time", [units.AT_A_TIME, 40])
def test_each_unit_of_an_ensemble_is_of_one_past_student(
    unit: Unit, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "AT_A_TIME", at_a_time)
    each, steps = smoother(unit), 12
    names = each.names
    students = [parts(unit, names, [x.detach().clone() for x in each.teacher])]
    for step in range(steps):
        students.append(parts(unit, names, move_student(each, step)))
        each.update(0.0, 0.7, 100 + step)
    now = parts(unit, names, [x.detach() for x in each.teacher])
    assert len(now) == len(each.ages)
    of_students = [
        [step for step, student in enumerate(students) if torch.equal(student[i], mine)] for i, mine in enumerate(now)
    ]
    assert all(len(found) == 1 for found in of_students)
    # The age of a unit is how long ago that student was.
    assert [steps - step for (step,) in of_students] == each.ages.tolist()


@pytest.mark.parametrize("unit", UNITS)
def test_draws_are_a_function_of_the_seed(unit: Unit) -> None:
    def chosen(seed: int, steps_before: int = 0) -> list[bool]:
        each = smoother(unit)
        for step in range(steps_before):
            each.update(0.5, 0.5, step)
        each.update(0.5, 0.5, seed)
        return each.renewed.tolist()

    assert chosen(7) == chosen(7, steps_before=3)
    assert chosen(7) != chosen(8)


@pytest.mark.parametrize("unit", UNITS)
def test_the_mean_over_draws_is_the_moving_average_of_the_effective_momentum(unit: Unit) -> None:
    keep, momentum, times = 0.6, 0.5, 400
    start = smoother(unit)
    begin = [x.detach().clone() for x in start.teacher]
    end = [x.detach().clone() for x in start.student]
    mean = [torch.zeros_like(x) for x in begin]
    for seed in range(times):
        torch._foreach_copy_([x.data for x in start.teacher], begin)
        start.update(momentum, keep, seed)
        torch._foreach_add_(mean, [x.detach() for x in start.teacher], alpha=1 / times)
    rate = effective_momentum(keep, momentum)
    assert rate == pytest.approx(0.8)
    # Shares of the way that units went, of which the mean has a standard deviation of 0.012.
    ways = torch.cat([((a - m) / (a - s)).flatten() for a, m, s in zip(begin, mean, end, strict=True)])
    ways = ways[ways.isfinite()]
    assert (ways - (1 - rate)).abs().max() < 5 * (1 - momentum) * (keep * (1 - keep) / times) ** 0.5
    # What the mean over independent units does, rules out a rate that is a little off.
    assert ways.mean() == pytest.approx(1 - rate, abs=0.03 if unit in ("tensor", "layer") else 0.005)


def test_keep_probabilities_of_elements_are_exact_in_the_mean() -> None:
    """They are drawn with sixteen bits, of which this one would need eighteen."""
    numbers = torch.zeros(2**16)
    found = units.Units("element", ["weight"], [numbers])
    chosen = sum(
        int(part.sum()) for seed in range(256) for choice in found.choices([1 - 2**-18], seed) for part in choice.chosen
    )
    # 64 with a standard deviation of 16; rounded, it would be 256 or none.
    assert 0 < chosen < 144


def test_draws_below_the_keep_probability_keep() -> None:
    draws = torch.tensor([0.0, 0.3, 0.5, 0.7])
    assert renewed(draws, 0.5).tolist() == [False, False, True, True]
    teacher, student = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), torch.ones(3)]
    spatial_ensemble(teacher, student, [True, False])
    assert [x.tolist() for x in teacher] == [[1, 1], [0, 0, 0]]
    spatial_ensemble(teacher, student, [torch.tensor([False, True]), torch.tensor([False, False, True])])
    assert [x.tolist() for x in teacher] == [[1, 1], [0, 0, 1]]


@pytest.mark.parametrize("unit", UNITS)
def test_parameters_may_have_a_keep_probability_of_their_own(unit: Unit) -> None:
    each = smoother(unit, {"teacher.0": 1.0, "3.bias": 0.0})
    before = copy.deepcopy([x.detach() for x in each.teacher])
    for seed in range(3):
        each.update(0.0, 0.5, seed)
    moved = {name: not torch.equal(a, b) for name, a, b in zip(each.names, before, each.teacher, strict=True)}
    assert not moved["teacher.0.weight"]
    assert not moved["teacher.0.bias"]
    index = each.names.index("teacher.3.bias")
    assert torch.equal(each.teacher[index], each.student[index])
    assert moved["teacher.1.weight"] or moved["teacher.3.weight"]
    shares = each.by_layer(each.ages)
    assert shares["teacher.0"] == 3
    assert list(shares) == ["teacher.0", "teacher.1", "teacher.2", "teacher.3"]
