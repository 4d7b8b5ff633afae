"""A run that goes on with other values uses them and says so, or refuses them by name and stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from callbacks import StepSeed
from exp.run_state import state_of
from tests.library.run_contents import after, assert_same, contents, table
from tests.library.runner import run
from tests.library.short_run import RUN, fit


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, which has nine steps."""
    folder = tmp_path_factory.mktemp("finished")
    ended = fit(folder)
    assert ended.code == 0, ended.output
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its first epoch, with a checkpoint of four steps."""
    folder = tmp_path_factory.mktemp("interrupted")
    assert fit(folder, sabotage=after(StepSeed, "on_train_batch_start", 6)).code < 0
    assert state_of(folder / RUN) == "interrupted"
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RUN / "run.json").read_text())


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in (folder / "runs").rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): path.read_bytes() for path in found}


def test_a_finished_run_goes_on_with_more_epochs_and_other_options(copy: Path) -> None:
    changed = [
        f"--resume={RUN}",
        "--trainer.max_epochs=2",
        "--model.optimizer.lr=0.002",
        "--model.optimizer.weight_decay=0.3",
        "--checkpoint.monitor=val/loss",
        "--checkpoint.mode=min",
    ]
    ended = fit(copy, *changed)
    assert ended.code == 0, ended.output
    last = contents(copy)
    assert last["global_step"] == 18
    assert {group["weight_decay"] for group in last["optimizer_states"][0]["param_groups"]} == {0.3, 0.0}
    rows = table(copy)
    # The warm-up is over: the cosine falls from 0.002.
    assert 0 < max(float(row["train/lr"]) for row in rows if row["train/lr"] and int(row["step"]) > 8) <= 0.002
    assert [int(row["step"]) for row in rows] == sorted(int(row["step"]) for row in rows)
    # A score of another metric is no score.
    score = float(next(row["val/loss"] for row in rows if row["val/loss"] and int(row["step"]) == 17))
    assert last["callbacks"]["Checkpoints"]["best_score"] == pytest.approx(score, rel=1e-5)
    lines = [
        "checkpoint.mode: None -> min",
        "checkpoint.monitor: None -> val/loss",
        "model.optimizer.lr: 0.01 -> 0.002",
        "model.optimizer.weight_decay: 0.01 -> 0.3",
        "trainer.max_epochs: 1 -> 2",
    ]
    (change,) = told(copy)["changes"]
    assert (change["step"], sorted(change["changes"])) == (9, lines)
    assert all(f"from step 9 on: {line}" in ended.output for line in lines)
    assert yaml.safe_load((copy / RUN / "config.yaml").read_text())["trainer"]["max_epochs"] == 2
    assert state_of(copy / RUN) == told(copy)["status"] == "finished"
    assert "is finished; nothing to do" in fit(copy, *changed).output


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--trainer.max_epochs=2", "--model.optimizer=torch.optim.SGD"], "optimiser (model.optimizer) is AdamW"),
        (["--trainer.max_epochs=2", "--model.optimizer.amsgrad=true"], "amsgrad: False -> True"),
        (
            [
                "--trainer.max_epochs=2",
                "--model.network.options={patch_size: 1, depths: [1, 1, 1, 1], dims: [4, 8, 8, 9], kernel_sizes: 3}",
            ],
            "another network: another shape have network.stages.3",
        ),
        (["--trainer.max_epochs=2", "--data.batch_size=64"], "data.batch_size: 128 -> 64"),
        (["--model.optimizer.lr=0.1"], "model.optimizer.lr: 0.01 -> 0.1 would change nothing"),
    ],
)
def test_what_cannot_be_applied_is_refused_and_the_run_stays_as_it_was(
    argv: list[str], named: str, finished: Path
) -> None:
    before = files(finished)
    for target in (str(RUN), f"{RUN}/checkpoints/last.ckpt"):
        if target.endswith("ckpt") and "nothing" in named:
            named = "the command asks for no more"
        ended = fit(finished, f"--resume={target}", *argv)
        assert ended.code in (1, 2), ended.output
        assert named in ended.output
        assert "Traceback" not in ended.output
        assert len([line for line in ended.output.splitlines() if line.startswith("exp: ")]) == 1
        assert files(finished) == before


def test_the_order_of_samples_stays_within_an_epoch(interrupted: Path) -> None:
    before = files(interrupted)
    ended = fit(interrupted, f"--resume={RUN}", "--seed_everything=7")
    assert ended.code == 2
    assert "in the middle of an epoch, whose samples seed_everything: 0 -> 7" in ended.output
    assert files(interrupted) == before


def test_a_training_that_ends_inside_an_epoch_is_validated_and_goes_on_as_if_it_had_not_ended(tmp_path: Path) -> None:
    lasting = ["--trainer.max_epochs=-1", "--model.schedule=Constant"]
    short, whole = tmp_path / "short", tmp_path / "whole"
    for folder, steps in ((short, 12), (whole, 18)):
        folder.mkdir()
        assert fit(folder, *lasting, f"--trainer.max_steps={steps}").code == 0
    assert [row["step"] for row in table(short) if row["val/top1"]] == ["8", "11"]
    assert (short / RUN / "checkpoints/best.ckpt").exists()
    ended = run("fit", ["--resume=run", "--trainer.max_steps=18"], short)
    assert ended.code == 0, ended.output
    assert "from step 12 on: trainer.max_steps: 12 -> 18" in ended.output
    assert_same(contents(short)["state_dict"], contents(whole)["state_dict"])
    curves = [{row["step"]: row["train/loss"] for row in table(folder)} for folder in (short, whole)]
    assert curves[0] == curves[1]


def test_averaging_can_end_and_begin(copy: Path) -> None:
    ema = ["--trainer.callbacks+=WeightEMA", "--trainer.callbacks.decay=0.9"]
    begun = fit(copy, f"--resume={RUN}", "--trainer.max_epochs=2", *ema)
    assert begun.code == 0, begun.output
    raw = contents(copy)["current_model_state"]
    ended = fit(
        copy, f"--resume={RUN}", "--trainer.max_epochs=3", "--model.optimizer.lr=1e-12", "--model.schedule=Constant"
    )
    assert ended.code == 0, ended.output
    weights = contents(copy)["state_dict"]
    name = "network.head.fc.weight"
    torch.testing.assert_close(weights[name], raw[name], rtol=0, atol=1e-8)


def test_callbacks_keep_their_state_and_take_the_commands_options(tmp_path: Path) -> None:
    def stopping(patience: int) -> list[str]:
        named = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
        return [*named, f"--trainer.callbacks.patience={patience}"]

    assert fit(tmp_path, *stopping(1)).code == 0
    ended = fit(tmp_path, f"--resume={RUN}", "--trainer.max_epochs=2", *stopping(4))
    assert ended.code == 0, ended.output
    assert "trainer.callbacks.0.patience: 1 -> 4" in ended.output
    (state,) = (state for key, state in contents(tmp_path)["callbacks"].items() if key.startswith("EarlyStopping"))
    assert state["patience"] == 4
    assert state["best_score"] < 2.3


def test_what_holds_no_training_is_no_start(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    refused = fit(tmp_path, "--resume=weights.ckpt")
    assert refused.code == 2
    assert (
        "holds no state of a training; start a new training from its weights by --weights=weights.ckpt"
        in refused.output
    )
    assert not (tmp_path / RUN).exists()
