"""Learning without labels: what moves when, what is found, and where a killed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback

from callbacks import Rule, Smoothing, StepSeed
from datamodules import Digits
from lightning_modules import Constant, SelfSupervised, WarmupCosine
from lightning_modules.self_supervised import clip_each
from models.mistakes import Mistake
from models.self_supervised import DINO, MoCo
from tests.library.learners import learner, views
from tests.library.recorder import SaveEverywhere

NAMES = ["moco", "byol", "dino"]


def task(name: str, **options: Any) -> SelfSupervised:
    return SelfSupervised(learner(name), optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3), **options)


def fit(
    module: SelfSupervised,
    name: str,
    *callbacks: Callback,
    resume: Path | None = None,
    smoothing: Smoothing | None = None,
    **limits: Any,
) -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[StepSeed(3), smoothing or Smoothing(Rule(momentum=0.9)), *callbacks],
        num_sanity_val_steps=0,
        **quiet,
        **{"max_steps": 4, "limit_val_batches": 0} | limits,  # type: ignore[arg-type]
    )
    trainer.fit(module, views(name, 256), ckpt_path=resume, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """The fifth batch is the first of the second epoch."""
    whole = task(name)
    fit(whole, name, SaveEverywhere(tmp_path), max_steps=6)
    for batch in (2, 5):
        again = task(name)
        for parameter in again.network.parameters():
            torch.nn.init.zeros_(parameter)
        fit(again, name, resume=tmp_path / f"batch{batch}.ckpt", max_steps=6)
        state = again.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_statistics_of_a_teacher_may_be_estimated_over_the_views_that_it_sees(name: str) -> None:
    seen: list[torch.Tensor] = []

    class Recording(SelfSupervised):
        def inputs(self, batch: Any) -> tuple[Any, ...]:
            (images,) = super().inputs(batch)
            seen.append(images)
            torch.testing.assert_close(images, batch["image"][0].flatten(0, 1))
            return (images,)

    module = Recording(learner(name), optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3))
    fit(module, name, smoothing=Smoothing(Rule(0.5), "recalibrate"), max_epochs=1, max_steps=-1)
    assert {each.shape for each in seen} == {(512, 3, 8, 8)}
    conv = module.network.teacher.get_submodule("backbone.conv")
    with torch.no_grad():
        expected = torch.stack([conv(images).mean((0, 2, 3)) for images in seen]).mean(0)
    torch.testing.assert_close(module.network.teacher.state_dict()["backbone.norm.running_mean"], expected)


@pytest.mark.parametrize("name", NAMES)
def test_all_that_follows_moves_once_a_step(name: str) -> None:
    """Queue, centre and teacher move after the second of two accumulated batches, and not after the first."""

    seen: list[dict[str, torch.Tensor]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen.append({key: value.clone() for key, value in pl_module.network.state_dict().items()})

    module = task(name)
    start = {key: value.clone() for key, value in module.network.state_dict().items()}
    fit(module, name, Watch(), accumulate_grad_batches=2, max_steps=2)

    def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], start: str) -> bool:
        own = [key for key in before if key.startswith(start) and "running" not in key and "tracked" not in key]
        assert own
        return any(not torch.equal(before[key], after[key]) for key in own)

    parts = ["student.", "teacher."] + {"moco": ["queue."], "dino": ["centre."], "byol": []}[name]
    for part in parts:
        assert not moved(start, seen[0], part)
        assert moved(seen[0], seen[1], part)
        assert not moved(seen[1], seen[2], part)
    if isinstance(module.network, MoCo):
        assert module.network.queue.pointer.item() == 2 * 2 * 256 % 1024


def test_what_a_step_accumulates_has_to_divide_the_queue() -> None:
    with pytest.raises(Mistake, match="a queue of 1,024 keys is not filled evenly by 768 keys a step"):
        fit(task("moco"), "moco", max_steps=1, accumulate_grad_batches=3)


def test_neighbours_beat_chance_and_both_sides_are_evaluated() -> None:
    module, data = task("byol", evaluates="both"), views("byol", 256)
    found = module.evaluate(data.val_dataloader(), data=data).metrics
    assert {"knn_top1", "knn_top1_student", "knn_top1_teacher", "rank", "spread"} == set(found)
    # An untrained convolution, of which the teacher is a copy.
    assert 0.5 < float(found["knn_top1"]) < 1
    assert found["knn_top1"] == found["knn_top1_student"] == found["knn_top1_teacher"]
    assert set(task("dino").evaluate(data.val_dataloader(), data=data).metrics) == {
        "knn_top1",
        "rank",
        "entropy",
        "mean_entropy",
    }


def test_a_collapse_is_told() -> None:
    module, data = task("byol"), views("byol", 256)
    for parameter in module.network.student.projector.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.warns(UserWarning, match="the features have collapsed: the projections of all images point the same"):
        module.evaluate(data.val_dataloader(), data=data)


def test_training_lowers_the_loss_of_each() -> None:
    losses: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            losses.append(float(next(iter(pl_module.losses.values()))))

    fit(task("byol"), "byol", Watch(), max_steps=20)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_the_teacher_sharpens_by_schedule() -> None:
    rising = WarmupCosine(warmup_epochs=2, warmup_lr=0.02, min_lr=0.04, by_epoch=True)
    module = task("dino", network_schedules={"teacher_temp": rising})
    seen: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            seen.append(pl_module.network.teacher_temp)

    # Four batches an epoch.
    fit(module, "dino", Watch(), max_steps=12)
    assert seen == pytest.approx([0.02] * 4 + [0.04] * 8)
    with pytest.raises(Mistake, match="DINO has no number 'temperature'; it has student_temp, teacher_temp"):
        task("dino", network_schedules={"temperature": Constant()})


def test_the_last_layer_waits_an_epoch() -> None:
    module = task("dino")
    network = module.network
    assert isinstance(network, DINO)
    before = network.student.projector.last_layer.direction.clone()
    fit(module, "dino", max_steps=4)
    assert torch.equal(network.student.projector.last_layer.direction, before)
    module = task("dino")
    fit(module, "dino", max_steps=5)
    assert not torch.equal(module.network.student.projector.last_layer.direction, before)


def test_each_gradient_is_clipped_by_itself() -> None:
    large, small = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    large.grad, small.grad = torch.full((4,), 5.0), torch.full((4,), 0.1)
    clip_each([large, small, torch.nn.Parameter(torch.zeros(1))], 2.0)
    assert large.grad.norm().item() == pytest.approx(2.0, rel=1e-5)
    assert small.grad.tolist() == pytest.approx([0.1] * 4)


def test_one_view_is_refused_and_a_teacher_that_stands_still_told() -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet)  # type: ignore[arg-type]
    with (
        pytest.warns(UserWarning, match=r"nothing moves the teacher, .*: add callbacks\.Smoothing"),
        pytest.raises(Mistake, match=r"put the data module into datamodules\.MultiView"),
    ):
        trainer.fit(task("byol"), Digits(batch_size=64))


def test_both_probes_judge_both_sides() -> None:
    module = task("byol", probes=["linear", "knn"], evaluates="both")
    assert module.monitor == "val/linear_top1"
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", **quiet)
    (found,) = trainer.validate(module, views("byol", 256), verbose=False)
    sides = {f"val/{probe}_top1_{side}" for probe in ("linear", "knn") for side in ("student", "teacher")}
    assert sides | {"val/linear_top1", "val/knn_top1"} <= set(found)
    # Even an untrained network's features tell most digits by lines, and the published side is the student.
    assert found["val/linear_top1"] == found["val/linear_top1_student"] > 0.6


@pytest.mark.parametrize("probes", [[], ["lines"]])
def test_a_probe_that_there_is_not(probes: list[str]) -> None:
    with pytest.raises(Mistake, match="probes: name knn or linear, or both"):
        task("byol", probes=probes)
