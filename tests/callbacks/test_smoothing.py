"""Teachers in training: when they move, by what, the same after a resume and on every process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from callbacks import Rule, Smoothing, StepSeed
from lightning_modules import AverageWarmup, WarmupCosine
from lightning_modules.randomness import step_seed
from models.smoothing import effective_momentum
from tests.library.batches import Batches
from tests.library.reports import trainer_with
from tests.library.taught_task import Taught, normed, taught
from tests.library.toy_task import Line, Numbers, seeded

UNITS = ("tensor", "layer", "channel", "element")
STS = {"momentum": 0.6, "keep": 0.5}
State = dict[str, Tensor]


class States(Callback):
    """Keeps what student and teacher are when a step's forward pass begins, and after every batch."""

    def __init__(self) -> None:
        self.before: list[tuple[State, State]] = []
        self.after: list[tuple[State, State]] = []

    def _now(self, pl_module: Any) -> tuple[State, State]:
        return copy.deepcopy(tuple(pl_module.network[name].state_dict() for name in ("student", "teacher")))  # type: ignore[return-value]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.began = self._now(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before.append(self._now(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.after.append(self._now(pl_module))


def fit(module: Taught, folder: Path, *callbacks: Callback, data: Any = None, **options: Any) -> Trainer:
    trainer = trainer_with(StepSeed(3), *callbacks, folder=folder, **{"max_epochs": 2, **options})
    trainer.fit(module, data or Numbers(), ckpt_path=options.pop("ckpt_path", None))
    return trainer


def parameters(state: State) -> list[str]:
    return [name for name in state if "running" not in name and "tracked" not in name]


def expected(teacher: State, student: State, momentum: float) -> State:
    return {name: momentum * teacher[name] + (1 - momentum) * student[name] for name in parameters(teacher)}


def test_a_teacher_moves_once_an_optimiser_step_after_it(tmp_path: Path) -> None:
    states = States()
    rule = Rule(0.6, momentum_schedule=WarmupCosine(min_lr=1.0))
    fit(taught(), tmp_path, Smoothing(rule), states, accumulate_grad_batches=2, max_epochs=3)
    # Three batches an epoch: the last one is a step of its own.
    moved = [
        not torch.equal(a[1]["0.weight"], b[1]["0.weight"]) for a, b in zip(states.before, states.after, strict=True)
    ]
    assert moved == [False, True, True] * 3
    table = rule.momentum_schedule.table(0.6, 2, 6)  # type: ignore[union-attr]
    teacher = states.before[0][1]
    steps = [after for after, moves in zip(states.after, moved, strict=True) if moves]
    for momentum, (student, now) in zip(table, steps, strict=True):
        torch.testing.assert_close({name: now[name] for name in parameters(now)}, expected(teacher, student, momentum))
        teacher = now


def test_a_teacher_moves_once_an_optimiser_step_before_it(tmp_path: Path) -> None:
    states = States()
    fit(taught(), tmp_path, Smoothing(Rule(0.6), when="before", init="own"), states, accumulate_grad_batches=2)
    teacher, student = states.began[1], states.began[0]
    for i, (now_student, now) in enumerate(states.before):
        # With the student of the step before, at the first batch of each: 0, 2, 3 and 5.
        share = 0.6 if i in (0, 2, 3, 5) else 1.0
        torch.testing.assert_close({name: now[name] for name in parameters(now)}, expected(teacher, now_student, share))
        teacher, student = states.after[i][1], now_student
    assert not torch.equal(student["0.weight"], states.began[0]["0.weight"])


@pytest.mark.parametrize("init", ["copy", "own", "masked"])
def test_how_a_teacher_begins(init: str, tmp_path: Path) -> None:
    module, states = taught(), States()
    before = copy.deepcopy(module.network["teacher"].state_dict())
    fit(module, tmp_path, Smoothing(Rule(**STS), init=init), states, limit_train_batches=1, max_epochs=1)  # type: ignore[arg-type]
    student, teacher = states.began
    names = parameters(before)
    draws = torch.rand(len(names), generator=torch.Generator().manual_seed(step_seed(3, -1, -1)))
    copied = {"copy": [True] * 6, "own": [False] * 6, "masked": (draws >= 0.5).tolist()}[init]
    assert len(set(copied)) == 1 + (init == "masked")
    for name, its in zip(names, copied, strict=True):
        assert torch.equal(teacher[name], (student if its else before)[name])


class Shared(Numbers):
    """Six times the same batch, on however many processes."""

    def train_dataloader(self) -> Batches:
        return Batches([self.batches()[0]] * (6 // self.trainer.world_size))


def state_of(trainer: Trainer, folder: Path) -> dict[str, Any]:
    trainer.save_checkpoint(folder / "end.ckpt")
    found: dict[str, Any] = torch.load(folder / "end.ckpt", weights_only=True)
    return found


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("when", ["after", "before"])
def test_a_resumed_training_ends_with_the_same_bits(unit: str, when: str, tmp_path: Path) -> None:
    def smoothing() -> Smoothing:
        rule = Rule(**STS, unit=unit, momentum_schedule=WarmupCosine(min_lr=1.0))  # type: ignore[arg-type]
        return Smoothing(rule, when=when, init="masked")  # type: ignore[arg-type]

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "kept.ckpt")

    whole = state_of(fit(taught(), tmp_path, smoothing(), Keep(), data=Shared()), tmp_path)
    again = trainer_with(StepSeed(3), smoothing(), folder=tmp_path, max_epochs=2)
    # Other weights than those that the training began with.
    again.fit(Taught(), Shared(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    resumed = state_of(again, tmp_path)
    assert resumed["global_step"] == 12
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    ages = [state["callbacks"]["Smoothing"]["ages"] for state in (whole, resumed)]
    assert torch.equal(*ages)
    assert ages[0].any()


class Still(Taught):
    """Takes steps without gradients: the threads of autograd do not outlive a fork."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.optimizers().step()  # type: ignore[union-attr]


class Save(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            path = Path(trainer.default_root_dir) / f"{trainer.global_rank}.pt"
            torch.save(pl_module.network["teacher"].state_dict(), path)


@pytest.mark.parametrize("unit", ["tensor", "element"])
def test_processes_choose_alike_however_many_there_are(unit: str, tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> None:
        torch.manual_seed(0)
        folder.mkdir(exist_ok=True)
        smoothing = Smoothing(Rule(momentum=0.5, keep=0.5, unit=unit), init="masked")  # type: ignore[arg-type]
        fit(Still(), folder, smoothing, Save(), data=Shared(), max_epochs=1, **options)

    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", find_unused_parameters=True)
    run(tmp_path / "two", strategy=strategy, devices=2)
    run(tmp_path / "one")
    first, second = (torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = torch.load(tmp_path / "one" / "0.pt", weights_only=True)
    for name in parameters(alone):
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], alone[name])


def test_what_is_logged_of_a_step(tmp_path: Path) -> None:
    states = States()
    rule = Rule(0.6, 0.5, "tensor", WarmupCosine(min_lr=1.0), AverageWarmup(), {"teacher.3": 0.0})
    smoothing = Smoothing(rule)
    trainer = fit(taught(), tmp_path, smoothing, states, max_epochs=1, log_every_n_steps=3)
    logged = {name.removeprefix("train/teacher_"): value.item() for name, value in trainer.logged_metrics.items()}
    momentum = rule.momentum_schedule.table(0.6, 3, 3)[2]  # type: ignore[union-attr]
    assert logged["momentum"] == pytest.approx(momentum)
    assert logged["effective_momentum"] == pytest.approx(effective_momentum(0.5, momentum))
    student, teacher = states.after[-1]
    names = parameters(student)
    square = sum((teacher[name] - student[name]).square().sum() for name in names)
    assert logged["distance"] == pytest.approx((square / sum(student[n].square().sum() for n in names)).sqrt().item())
    layers = ["network.teacher.0", "network.teacher.1", "network.teacher.3"]
    by_layer = {name for name in logged if name.startswith(("renewed/", "age/"))}
    assert by_layer == {f"{what}/{layer}" for what in ("renewed", "age") for layer in layers}
    last = states.after[-2][1]
    for name, layer in (("0", layers[0]), ("3", layers[2])):
        moved = [not torch.equal(last[f"{name}.{x}"], teacher[f"{name}.{x}"]) for x in ("weight", "bias")]
        assert logged[f"renewed/{layer}"] == sum(moved) / 2
    assert logged[f"age/{layers[2]}"] == 0


@pytest.mark.parametrize(
    ("policy", "training"), [("own", True), ("copy", False), ("ema", False), ("recalibrate", True)]
)
def test_a_teacher_is_in_the_mode_of_its_statistics(policy: str, training: bool, tmp_path: Path) -> None:
    modes = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            modes.append(pl_module.network["teacher"][1].training)

    module = taught()
    # With copies of the student's it is as the task has it.
    module.network["teacher"].train(policy == "ema")
    fit(module, tmp_path, Smoothing(Rule(0.9), batch_norm=policy), Look())  # type: ignore[arg-type]
    assert modes == [training] * 6


def test_statistics_of_a_teacher_are_estimated_before_it_is_evaluated(tmp_path: Path) -> None:
    seen: list[State] = []

    class Look(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(copy.deepcopy(pl_module.network["teacher"].state_dict()))

    class Teacher(Taught):
        def inputs(self, batch: Any) -> tuple[Any, ...]:
            return (batch["image"],)

    torch.manual_seed(0)
    fit(Teacher(), tmp_path, Smoothing(Rule(0.5, 0.5), "recalibrate"), Look(), num_sanity_val_steps=0)
    for state in seen:
        again = normed()
        again.load_state_dict(state)
        maps = [again[0](batch["image"]) for batch in Numbers().batches()]
        torch.testing.assert_close(state["1.running_mean"], torch.stack([x.mean(0) for x in maps]).mean(0))
        torch.testing.assert_close(state["1.running_var"], torch.stack([x.var(0) for x in maps]).mean(0))
    assert len(seen) == 2


def test_what_cannot_be_smoothed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Smoothing: Sums has no teacher; AveragedWeights follows"):
        trainer_with(Smoothing(Rule()), folder=tmp_path).fit(seeded(), Numbers())
    with pytest.raises(ValueError, match=r"'network\.teacher' has no batch norm .*: leave out batch_norm, 'ema'"):
        fit(Taught(Line()), tmp_path, Smoothing(Rule(), "ema"))
    with pytest.raises(ValueError, match=r"smoothing: keep is a share, from 0 to 1, not -0\.1"):
        Rule(keep=-0.1)
    with pytest.raises(ValueError, match="smoothing: keep_layers: head is a share, from 0 to 1, not 2"):
        Rule(keep_layers={"head": 2.0})
    with pytest.raises(ValueError, match="Smoothing: init must be one of copy, masked, own, not 'zero'"):
        Smoothing(Rule(), init="zero")  # type: ignore[arg-type]


def test_a_callback_that_comes_late_begins_there(tmp_path: Path) -> None:
    trainer = fit(taught(), tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    states = States()
    later = trainer_with(Smoothing(Rule(0.5)), states, folder=tmp_path, max_epochs=2)
    later.fit(taught(), Numbers(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    teacher = states.began[1]
    for student, now in states.after:
        torch.testing.assert_close({name: now[name] for name in parameters(now)}, expected(teacher, student, 0.5))
        teacher = now
    assert isinstance(later.lightning_module, nn.Module)
