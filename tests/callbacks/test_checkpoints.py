"""When a checkpoint is taken, which are kept, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from callbacks.checkpoints import Checkpoints
from callbacks.preemption import Preempted, Preemption
from tests.library.batches import Batches
from tests.library.callback_batches import Data, batches


class Scored(LightningModule):
    """A module that learns next to nothing and is given the score of each of its validations."""

    monitor = "val/score"

    def __init__(self, scores: list[float], mode: str = "max") -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)
        self.scores = iter(scores)
        self.monitor_mode = mode

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layer(batch["image"].flatten(1)).square().mean()

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log("val/score", next(self.scores))
        self.log("val/other", float(self.global_step))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Validated(Data):
    class_names = ("cat", "dog")

    def val_dataloader(self) -> Batches:
        return Batches(self.batches[:1])


class Recorded(Trainer):
    """A trainer that notes each checkpoint: its name, and the optimiser steps that it holds."""

    saved: list[tuple[str, int]]

    def save_checkpoint(self, filepath: Any, *args: Any, **options: Any) -> None:
        self.saved.append((Path(filepath).stem, self.global_step))
        super().save_checkpoint(filepath, *args, **options)


def fit(
    checkpoints: Checkpoints,
    folder: Path,
    scores: list[float] | None = None,
    mode: str = "max",
    resume: str | None = None,
    **options: Any,
) -> Recorded:
    checkpoints.folder = folder
    trainer = Recorded(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*options.pop("callbacks", []), checkpoints],
        default_root_dir=folder,
        **{"max_epochs": 1, **options},
    )
    trainer.saved = []
    data = Data(batches(8)) if scores is None else Validated(batches(8))
    trainer.fit(Scored(scores or [], mode), data, ckpt_path=resume and folder / resume, weights_only=True)
    return trainer


def taken(trainer: Recorded, name: str) -> list[int]:
    return [step for found, step in trainer.saved if found == name]


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (1, [1, 2, 3, 4, 5, 6, 7, 8]),
        (3, [3, 6, 8]),
        # The end of the epoch comes next after the seventh step's batch, and is in time.
        (7, [7, 8]),
        (8, [8]),
        (500, [8]),
    ],
)
def test_one_is_taken_each_so_many_steps_and_at_the_end_of_the_epoch(
    every: int, steps: list[int], tmp_path: Path
) -> None:
    assert taken(fit(Checkpoints(every), tmp_path), "last") == steps


def test_steps_are_counted_from_the_last_one_across_epochs(tmp_path: Path) -> None:
    assert taken(fit(Checkpoints(3), tmp_path, max_epochs=2), "last") == [3, 6, 8, 11, 14, 16]


def test_none_is_taken_where_gradients_are_half_gathered_or_a_validation_follows(tmp_path: Path) -> None:
    trainer = fit(Checkpoints(1), tmp_path, [0.0] * 4, accumulate_grad_batches=2, val_check_interval=4)
    assert taken(trainer, "last") == [1, 3, 4]


def test_a_resumed_training_counts_on(tmp_path: Path) -> None:
    fit(Checkpoints(3), tmp_path)
    assert taken(fit(Checkpoints(5), tmp_path, resume="last.ckpt", max_epochs=2), "last") == [13, 16]


def test_previous_is_the_one_before_the_last(tmp_path: Path) -> None:
    fit(Checkpoints(3), tmp_path)
    steps = {path.stem: torch.load(path, weights_only=True)["global_step"] for path in tmp_path.glob("*.ckpt")}
    assert steps == {"last": 8, "previous": 6}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize(
    ("mode", "scores", "steps"),
    [
        ("max", [0.5, 0.25, 0.5, 0.75], [8, 24, 32]),
        ("min", [0.5, 0.75, 0.5, 0.25], [8, 24, 32]),
        ("max", [float("nan"), -1.0, float("nan"), -2.0], [16]),
    ],
)
def test_best_is_the_latest_of_the_best(mode: str, scores: list[float], steps: list[int], tmp_path: Path) -> None:
    checkpoints = Checkpoints()
    assert taken(fit(checkpoints, tmp_path, scores, mode, max_epochs=4), "best") == steps
    assert (checkpoints.best_score, checkpoints.best_step) == (
        (max if mode == "max" else min)(s for s in scores if s == s),
        steps[-1],
    )
    assert checkpoints.best == tmp_path / "best.ckpt"


def test_the_options_come_before_what_the_module_wants(tmp_path: Path) -> None:
    trainer = fit(Checkpoints(monitor="val/other", mode="min"), tmp_path, [0.1, 0.2, 0.3], max_epochs=3)
    assert taken(trainer, "best") == [8]


def test_a_metric_that_validation_does_not_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"monitor is 'val/scores', but validation logs val/other, val/score"):
        fit(Checkpoints(monitor="val/scores"), tmp_path, [0.5])


def test_a_score_is_kept_only_for_what_it_is_of_and_with_its_file(tmp_path: Path) -> None:
    fit(Checkpoints(), tmp_path, [0.5])
    (tmp_path / "last.ckpt").rename(tmp_path / "first.ckpt")
    assert taken(fit(Checkpoints(), tmp_path, [0.4], resume="first.ckpt", max_epochs=2), "best") == []
    other = Checkpoints(monitor="val/other")
    assert taken(fit(other, tmp_path, [0.4], resume="first.ckpt", max_epochs=2), "best") == [16]
    assert (other.best_score, other.best_step) == (16.0, 16)
    # The score is of a file that somebody has removed.
    (tmp_path / "best.ckpt").unlink()
    again = Checkpoints()
    assert taken(fit(again, tmp_path, [0.4], resume="first.ckpt", max_epochs=2), "best") == [16]
    assert again.best_score == pytest.approx(0.4)


def test_no_file_is_best_before_a_validation(tmp_path: Path) -> None:
    checkpoints = Checkpoints()
    fit(checkpoints, tmp_path)
    assert checkpoints.best is None


@pytest.mark.parametrize("step", [3, 8])
def test_a_request_to_stop_is_met_with_a_checkpoint(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Preemption, "agreed", lambda self, trainer: trainer.global_step >= step)
    with pytest.raises(Preempted) as stopped:
        fit(Checkpoints(), tmp_path, callbacks=[Preemption()], max_epochs=2)
    assert (stopped.value.code, stopped.value.step, stopped.value.saved) == (75, step, True)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == step


def test_a_checkpoint_can_be_used_on_its_own(tmp_path: Path) -> None:
    checkpoints = Checkpoints()
    checkpoints.config = "model: x"
    fit(checkpoints, tmp_path, [0.5])
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (found["exp_config"], found["class_names"]) == ("model: x", ["cat", "dog"])
    assert found["callbacks"]["Checkpoints"] == {
        "best_score": 0.5,
        "best_step": 8,
        "saved_step": 8,
        "monitor": "val/score",
        "mode": "max",
        "steps_per_epoch": 8,
        "training_samples": None,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "checkpoint.every_n_steps is 0, must be at least 1"),
        ({"mode": "most"}, "checkpoint.mode is 'most', must be 'min' or 'max'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Checkpoints(**options)
