"""What is measured of a training, that it stays the training that it was, and the two ways to take a hand in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from callbacks import SphericalMotion, StepSeed
from lightning_modules import MultiStep
from models.spherical_motion import angular_update
from tests.library.batches import Batches
from tests.library.normed_task import Noise, normed
from tests.library.reports import trainer_with
from tests.library.toy_task import Numbers, seeded

State = dict[str, Tensor]
FOUND = [("0.weight",), ("3.weight",), ("7.weight", "7.bias")]


class Weights(Callback):
    """Keeps the weights before each batch, and as an optimiser step begins and has ended; fails where they are not the
    task's."""

    def __init__(self) -> None:
        self.before: list[State] = []
        self.after: list[State] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before.append({name: value.detach().clone() for name, value in pl_module.network.state_dict().items()})

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.after.append({name: value.detach().clone() for name, value in pl_module.network.state_dict().items()})
        self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fit(folder: Path, *callbacks: Callback, task: Any = None, **options: Any) -> Trainer:
    wanted = {"max_epochs": 1, "log_every_n_steps": 4} | options
    trainer = trainer_with(StepSeed(3), *callbacks, folder=folder, **wanted)
    trainer.fit(task or normed(), Noise())
    return trainer


def same(one: State, other: State) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}],
    ids=["plain", "accumulated", "bf16", "clipped"],
)
def test_training_is_the_same_with_it_and_measured_by_the_step(options: dict[str, Any], tmp_path: Path) -> None:
    with_it, without = Weights(), Weights()
    motion = SphericalMotion(granularity="filter")
    fit(tmp_path, motion, with_it, max_epochs=2, **options)
    fit(tmp_path, without, max_epochs=2, **options)
    assert same(with_it.after[-1], without.after[-1])
    assert motion.weights is not None
    assert [tuple(t.removeprefix("network.") for t in each.tensors) for each in motion.weights] == FOUND
    assert [each.unit for each in motion.weights] == ["filter", "filter", "layer"]
    # Of the last step that was logged: from the batch with which it began to its last.
    batches = options.get("accumulate_grad_batches", 1)
    end = len(with_it.after) - 1
    for name in ("0", "3"):
        before, after = (state[f"{name}.weight"].double() for state in (with_it.before[end], with_it.after[end]))
        logged = with_it.logged[end]
        assert logged[f"train/smd_angle/{name}"] == pytest.approx(angular_update(before, after).item(), rel=1e-5)
        angles = angular_update(before, after, 8)
        assert logged[f"train/smd_angle_low/{name}"] == pytest.approx(angles.quantile(0.05).item(), rel=1e-4)
        assert logged[f"train/smd_norm/{name}"] == pytest.approx(before.norm().item(), rel=1e-6)
        assert abs(logged[f"train/smd_cos/{name}"]) < 1e-3
        assert logged[f"train/smd_prediction/{name}"] == pytest.approx(math.sqrt(2 * 0.1 * 0.01 / 1.9))
    # Every fourth step, from the eighth look on.
    assert len(motion.record.window) == 24 // batches // 4 - 1


def test_what_is_logged_is_of_the_gradient_without_decay_before_clipping(tmp_path: Path) -> None:
    gradients: list[Tensor] = []

    class Gradient(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            gradients.append(pl_module.network[0].weight.grad.clone())

    weights = Weights()
    fit(tmp_path, SphericalMotion(), Gradient(), weights, gradient_clip_val=1e-3)
    expected = gradients[-1].norm() * weights.before[-1]["0.weight"].norm()
    assert weights.logged[-1]["train/smd_unit_gradient/0"] == pytest.approx(expected.item(), rel=1e-5)
    assert gradients[-1].norm() > 1e-3


class Keep(Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class Shared(Noise):
    """The same batch at every step, so that a loader has no place to go on from."""

    def train_dataloader(self) -> Batches:
        return Batches([super().train_dataloader().batches[0]] * self.steps)


HANDS: dict[str, dict[str, Any]] = {
    "watching": {"span": 3},
    "rescaling": {"rescale": True},
    "holding": {"angular_rate": 0.05, "angular_schedule": MultiStep([0.9])},
}


@pytest.mark.parametrize(("hand", "step"), [("watching", 5), ("watching", 10), ("rescaling", 10), ("holding", 11)])
def test_a_resumed_training_ends_with_the_same_bits(hand: str, step: int, tmp_path: Path) -> None:
    """Before weights are known, before a drop of the learning rate, and in the midst of a span."""

    def task() -> Any:
        return normed(schedule=MultiStep([10 / 12]))

    def ended(trainer: Trainer) -> tuple[State, Any]:
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        state = torch.load(tmp_path / "end.ckpt", weights_only=True)
        return state["state_dict"], state["callbacks"]["SphericalMotion"]

    def run(*callbacks: Callback, path: Path | None = None) -> tuple[State, Any]:
        motion = SphericalMotion(**HANDS[hand])
        trainer = trainer_with(StepSeed(3), motion, *callbacks, folder=tmp_path, max_epochs=2, log_every_n_steps=4)
        trainer.fit(task(), Shared(), ckpt_path=path, weights_only=True)
        return ended(trainer)

    whole = run(Keep(tmp_path / "kept.ckpt", step))
    resumed = run(path=tmp_path / "kept.ckpt")
    assert same(whole[0], resumed[0])
    assert str(whole[1]) == str(resumed[1])
    assert whole[1]["record"]["window"]
    assert [f[0] for f in whole[1]["factors"]] == ([10.0] if hand == "rescaling" else [])


def test_rescaling_leaves_the_function_and_ends_the_wait(tmp_path: Path) -> None:
    task, motion, weights = normed(schedule=MultiStep([10 / 12])), SphericalMotion(rescale=True), Weights()
    fit(tmp_path, motion, weights, task=task)
    assert motion.factors == [[10.0, pytest.approx(10**-0.25)]]
    images = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    outputs = []
    for state in (weights.after[9], weights.before[10]):
        task.network.load_state_dict(state)
        task.network.train()
        task.network[9].eval()
        outputs.append(task.network(images))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)
    for name in ("0.weight", "3.weight", "7.weight", "7.bias"):
        torch.testing.assert_close(weights.before[10][name], 10**-0.25 * weights.after[9][name])
    assert torch.equal(weights.before[10]["10.weight"], weights.after[9]["10.weight"])


def test_a_held_rate_turns_every_filter_alike_and_keeps_its_length(tmp_path: Path) -> None:
    weights = Weights()
    rate = MultiStep([0.9])
    fit(tmp_path, SphericalMotion(angular_rate=0.05, angular_schedule=rate), weights)
    # Once it knows which weights there are, at the eighth step.
    for step, angle in ((8, 0.05), (10, 0.05), (11, 0.005)):
        before, after = weights.before[step], weights.after[step]
        for name, blocks in (("0", 8), ("3", 8)):
            w, new = before[f"{name}.weight"], after[f"{name}.weight"]
            assert angular_update(w, new, blocks).tolist() == pytest.approx([angle] * blocks, rel=1e-4)
            torch.testing.assert_close(w.flatten(1).norm(dim=1), new.flatten(1).norm(dim=1))
        joint = [[state["7.weight"], state["7.bias"]] for state in (before, after)]
        assert angular_update(*joint).item() == pytest.approx(angle, rel=1e-4)
    assert weights.logged[-1]["train/smd_ratio"] == pytest.approx(1, rel=1e-4)


def test_an_angle_over_a_span_of_steps(tmp_path: Path) -> None:
    weights = Weights()
    fit(tmp_path, SphericalMotion(span=3), weights)
    angles = [angular_update(weights.before[9][f"{i}.weight"], weights.after[11][f"{i}.weight"]).item() for i in (0, 3)]
    first = [angular_update(weights.before[5][f"{i}.weight"], weights.after[7][f"{i}.weight"]).item() for i in (0, 3)]
    assert weights.logged[-1]["train/smd_travelled"] > weights.logged[-1]["train/smd_angle"]
    assert all(angle > 0 for angle in angles + first)


def test_it_says_what_a_schedule_leaves_no_time_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    motion = SphericalMotion()
    fit(tmp_path, motion, task=normed(schedule=MultiStep([1.5])), max_epochs=2)
    takes = math.log(10) * 0.1 / (4 * 0.01 * 0.01)
    assert motion.said == [
        "3 weights are scale-invariant, by filter or layer; by the theory of sgdm, at a learning rate of 0.1 "
        "equilibrium turns them by 0.03244 a step and takes about 75 steps",
        f"after the drop at step 18 equilibrium takes {takes:,.0f} steps; 6 are left",
    ]
    assert capsys.readouterr().err.count("exp: SphericalMotion: ") == 2


class Save(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        torch.save(pl_module.network.state_dict(), folder / f"{trainer.global_rank}.pt")
        if trainer.is_global_zero:
            names = ("train/smd_angle/0", "train/smd_unit_gradient/0", "train/smd_ratio")
            torch.save({name: trainer.callback_metrics[name] for name in names}, folder / "logged.pt")


class Still(type(normed())):  # type: ignore[misc]
    """Takes steps along given gradients: the threads of autograd do not outlive a fork."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        generator = torch.Generator().manual_seed(batch_idx)
        for parameter in self.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            rows = parameter.detach().flatten(1) if parameter.ndim > 1 else parameter.detach()[:, None]
            across = noise.reshape(rows.shape)
            across -= (across * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True).clamp(min=1e-9) * rows
            parameter.grad = across.reshape(parameter.shape)
        self.optimizers().step()


@pytest.mark.parametrize("hand", [{}, {"angular_rate": 0.05}], ids=["watching", "holding"])
def test_processes_agree_and_the_first_one_logs(hand: dict[str, Any], tmp_path: Path) -> None:
    def run(folder: Path, **options: Any) -> None:
        folder.mkdir()
        task = normed()
        task.__class__ = Still
        trainer = trainer_with(
            StepSeed(3), SphericalMotion(**hand), Save(), folder=folder, max_epochs=1, log_every_n_steps=4, **options
        )
        trainer.fit(task, Noise(12 * options.get("devices", 1)))

    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", find_unused_parameters=True)
    run(tmp_path / "two", strategy=strategy, devices=2)
    run(tmp_path / "one")
    first, second = (torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = torch.load(tmp_path / "one" / "0.pt", weights_only=True)
    assert same(first, second)
    assert same(first, alone)
    logged = [torch.load(tmp_path / folder / "logged.pt", weights_only=True) for folder in ("one", "two")]
    assert logged[0] == logged[1]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="granularity must be one of layer, filter, not 'channel'"):
        SphericalMotion(granularity="channel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="angular_rate is an angle between 0 and pi / 2, not 0"):
        SphericalMotion(angular_rate=0.0)
    with pytest.raises(ValueError, match="angular_schedule is relative to angular_rate, which is missing"):
        SphericalMotion(angular_schedule=MultiStep([1]))
    with pytest.raises(ValueError, match="need no rescale"):
        SphericalMotion(angular_rate=0.1, rescale=True)
    with pytest.raises(ValueError, match="is scale-invariant, so there is nothing to rescale or to turn"):
        fit(tmp_path, SphericalMotion(["10.*"], rescale=True))
    with pytest.raises(ValueError, match="rescale needs an optimiser with a theory, and weight decay"):
        fit(tmp_path, SphericalMotion(rescale=True), task=normed(optimizer=torch.optim.Adam))


def test_a_network_without_norms_is_said_to_have_nothing_to_measure(tmp_path: Path) -> None:
    motion = SphericalMotion()
    trainer = trainer_with(motion, folder=tmp_path, max_epochs=4, log_every_n_steps=2)
    trainer.fit(seeded(), Numbers())
    assert motion.said == ["0 weights are scale-invariant: are there norms, with statistics of the batch?"]
    assert not [name for name in trainer.callback_metrics if "smd" in name]
