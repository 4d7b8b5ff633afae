"""A small network learns from a larger one, and what is left is the small one alone: by the command line."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import StepSeed
from tests.library.run_contents import after, assert_same, contents, table
from tests.library.runner import Ended, run
from tests.library.short_run import fit

TEACHER = "{class_path: models.classifiers.timm_classifier, init_args: {name: convnext_atto, num_classes: 10, options: \
{patch_size: 1, depths: [1, 1, 1, 1], dims: [4, 8, 8, 8], kernel_sizes: 3}}}"
TERMS = "{logits: {class_path: models.distillation.Logits}, stages: {class_path: models.distillation.Hints, init_args: \
{student: [stages], teacher: [stages]}}}"
DISTILLED = [
    "--model.network.options={patch_size: 1, depths: [1, 1, 1, 1], dims: [4, 4, 4, 4], kernel_sizes: 3}",
    "--model.distillation=Distillation",
    f"--model.distillation.teacher={TEACHER}",
    f"--model.distillation.terms={TERMS}",
    "--model.distillation.clip=1.0",
]
TAUGHT = [*DISTILLED, "--weights.distillation.teacher=teacher.ckpt", "--trainer.accumulate_grad_batches=2"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    ended = fit(folder)
    assert ended.code == 0, ended.output
    return folder / "runs/run/0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def distilled(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distilled")
    ended = taught(folder, teacher)
    assert ended.code == 0, ended.output
    return folder


def taught(folder: Path, teacher: Path, *argv: str, sabotage: Callable[[], None] | None = None) -> Ended:
    shutil.copy(teacher, folder / "teacher.ckpt")
    return fit(folder, *TAUGHT, *argv, sabotage=sabotage)


def test_a_killed_run_ends_with_the_same_bits(distilled: Path, teacher: Path, tmp_path: Path) -> None:
    killed = taught(tmp_path, teacher, sabotage=after(StepSeed, "on_train_batch_start", 8))
    assert killed.code == -signal.SIGKILL, killed.output
    ended = taught(tmp_path, teacher)
    assert ended.code == 0, ended.output
    assert "resuming from" in ended.output
    assert_same(contents(distilled), contents(tmp_path))
    assert table(distilled) == table(tmp_path)
    assert {"train/loss_ce", "train/loss_distil_logits", "train/loss_distil_stages"} <= table(distilled)[0].keys()


def test_the_checkpoint_is_the_students_alone(distilled: Path, tmp_path: Path) -> None:
    kept = contents(distilled, "best")
    assert {name.partition(".")[0] for name in kept["state_dict"]} == {"network"}
    assert set(kept["optimizer_states"][0]) == {"network", "distillation"}
    shutil.copytree(distilled / "runs", tmp_path / "runs")
    # Neither the teacher's file nor its class is there any more.
    ended = run("validate", ["--ckpt_path=run/best"], tmp_path, _forget_distillation)
    assert ended.code == 0, ended.output
    shown = [row["val/top1"] for row in table(distilled) if row.get("val/top1")]
    assert f"{float(shown[-1]):.4g}" in ended.output


def _forget_distillation() -> None:
    import lightning_modules.distillation

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the teacher was built")

    lightning_modules.distillation.Distillation.__init__ = refuse  # type: ignore[method-assign]


def test_what_trained_beside_the_student_begins_another_training(
    distilled: Path, teacher: Path, tmp_path: Path
) -> None:
    shutil.copy(distilled / "runs/run/0/checkpoints/last.ckpt", tmp_path / "terms.ckpt")
    begun = ["--weights.distillation.terms=terms.ckpt", "--model.optimizer.lr=1e-12", "--model.distillation.optimizer="]
    frozen = "{class_path: torch.optim.SGD, init_args: {lr: 1.0e-12}}"
    ended = taught(tmp_path, teacher, *begun[:2], f"{begun[2]}{frozen}")
    assert ended.code == 0, ended.output
    terms = [contents(folder)["distillation"]["terms"] for folder in (distilled, tmp_path)]
    assert terms[0]
    for name, value in terms[0].items():
        torch.testing.assert_close(terms[1][name], value)


def test_another_teacher_is_refused(distilled: Path, teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(distilled / "runs", tmp_path / "runs")
    other = torch.load(teacher, weights_only=True)
    other["state_dict"]["network.head.fc.bias"] += 1
    torch.save(other, tmp_path / "other.ckpt")
    ended = taught(tmp_path, tmp_path / "other.ckpt", "--trainer.max_epochs=2", "--resume=runs/run/0")
    assert ended.code == 1
    assert "last.ckpt: the checkpoint was made with another teacher" in ended.output.splitlines()[-1]


def test_a_teacher_without_weights_is_refused_before_there_is_a_run(tmp_path: Path) -> None:
    ended = fit(tmp_path, *DISTILLED)
    assert ended.code == 2
    assert ended.output.startswith("exp: --weights.distillation.teacher: it has no weights to begin with")
    assert not (tmp_path / "runs").exists()
