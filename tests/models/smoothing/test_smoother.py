"""Pairs of networks: names, batch norms, distance."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.smoothing import Smoother


def network(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    built = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
    norm = built[1]
    norm.running_mean += torch.randn(width)
    norm.num_batches_tracked += seed
    return built


@pytest.mark.parametrize(
    ("policy", "share"), [("own", 0.0), ("recalibrate", 0.0), ("copy", 1.0), ("ema", (1 - 0.6) * (1 - 0.5))]
)
def test_running_statistics_go_by_the_policy(policy: str, share: float) -> None:
    student, teacher = network(1), network(2)
    before = copy.deepcopy(teacher.state_dict())
    Smoother({"teacher": (student, teacher)}, batch_norm=policy).update(0.5, 0.6, 0)  # type: ignore[arg-type]
    for name in ("1.running_mean", "1.running_var"):
        expected = (1 - share) * before[name] + share * student.state_dict()[name]
        torch.testing.assert_close(teacher.state_dict()[name], expected)
    assert teacher.state_dict()["1.num_batches_tracked"] == (1 if share else 2)


def test_averaged_statistics_keep_the_pace_of_the_weights_beside_them() -> None:
    student, teacher = (nn.Sequential(*network(seed), *network(seed + 2)) for seed in (1, 2))
    before = copy.deepcopy(teacher.state_dict())
    Smoother({"teacher": (student, teacher)}, batch_norm="ema", keep={"teacher.3": 0.9}).update(0.5, 0.6, 0)
    for name, share in (("1.running_mean", 0.4 * 0.5), ("3.running_mean", 0.1 * 0.5)):
        expected = before[name].lerp(student.state_dict()[name], share)
        torch.testing.assert_close(teacher.state_dict()[name], expected)
        assert not torch.equal(expected, before[name])


def test_pairs_are_by_name_and_in_any_order() -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predictor, self.head, self.body = nn.Linear(2, 2), nn.Linear(3, 3), nn.Linear(3, 3)

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

    student, teacher = Student(), Teacher()
    Smoother({"teacher": (student, teacher)}).update(0.0, 0.0, 0)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())


def test_several_pairs_move_together() -> None:
    pairs = {"a": (network(1), network(2)), "b": (network(3), network(4))}
    Smoother(pairs).update(0.0, 0.0, 0)
    for student, teacher in pairs.values():
        assert torch.equal(student[0].weight, teacher[0].weight)


@pytest.mark.parametrize("unit", ["tensor", "channel"])
def test_an_average_may_be_finer_than_what_it_is_of(unit: str) -> None:
    student, teacher = network(1).bfloat16(), network(2)
    before = copy.deepcopy(teacher.state_dict())
    smoother = Smoother({"teacher": (student, teacher)}, unit, "ema")  # type: ignore[arg-type]
    smoother.update(0.9, 0.0, 0)
    for name in ("0.weight", "1.running_mean"):
        expected = 0.9 * before[name] + 0.1 * student.state_dict()[name].float()
        torch.testing.assert_close(teacher.state_dict()[name], expected)
    smoother.update(0.0, 0.5, 0)
    assert 0 < smoother.distance() < 2


def test_distance_is_a_share_of_the_students_norm() -> None:
    student, teacher = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    student.weight.data, teacher.weight.data = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]])
    assert Smoother({"teacher": (student, teacher)}).distance().item() == pytest.approx(1 / 5)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"the student has no 1\.weight, 1\.bias of the teacher 'teacher'$"):
        Smoother({"teacher": (network()[:1], network())})
    with pytest.raises(ValueError, match=r"0\.weight of the teacher 'teacher' .* \(5, 3\) and \(4, 3\)"):
        Smoother({"teacher": (network(width=4), network(width=5))})
    with pytest.raises(ValueError, match="no parameter of a teacher has 'head' in its name"):
        Smoother({"teacher": (network(), network())}, keep={"head": 0.5})
    with pytest.raises(ValueError, match="a unit of smoothing is one of tensor, layer, channel, element, not 'row'"):
        Smoother({"teacher": (network(), network())}, "row")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_norm is one of own, copy, ema, recalibrate, not 'mine'"):
        Smoother({"teacher": (network(), network())}, batch_norm="mine")  # type: ignore[arg-type]


class Unhurried(TorchDispatchMode):
    """Refuses what would wait for a device: to read a value, or to find out how many there are."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not {"_local_scalar_dense", "nonzero"} & set(str(func).split(".")), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("unit", ["tensor", "layer", "channel", "element"])
def test_an_update_waits_for_no_device(unit: str) -> None:
    smoother = Smoother({"teacher": (network(1), network(2))}, unit, "ema")  # type: ignore[arg-type]
    with Unhurried():
        smoother.update(0.9, 0.5, 1)
        smoother.by_layer(smoother.renewed)
        smoother.distance()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Unhurried():
        smoother.distance().item()
