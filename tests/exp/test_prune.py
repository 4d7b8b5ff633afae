"""`prune` on a run of nine steps: the plan, the new run, and faults that leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from exp import prune
from exp.checkpoint_io import read_checkpoint
from exp.run_state import read_state
from models.pruning.plan import Plan
from tests.library.runner import run
from tests.library.short_run import fit

NAME = "run-l1-macs-0.5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and what pruning made of it."""
    folder = tmp_path_factory.mktemp("prune")
    assert fit(folder).code == 0
    ended = run("prune", ["run", "--budget=0.5", "--wandb=disabled"], folder)
    assert ended.code == 0, ended.output
    assert "Scratch-B, this architecture from random weights" in ended.output
    return folder


def test_the_new_run_is_smaller_and_says_by_what(folder: Path) -> None:
    made = folder / "runs" / NAME
    costs = json.loads((made / "costs.json").read_text())
    assert 0.4 < costs["after"]["macs"] / costs["before"]["macs"] <= 0.5
    assert 0 <= costs["found"]["val/top1"] <= 1
    # One epoch of the large network.
    assert costs["scratch_b_epochs"] == int(costs["before"]["macs"] / costs["after"]["macs"])
    rows = [line.split(",") for line in (made / "layers.csv").read_text().splitlines()]
    assert rows[0][:3] == ["layer", "channels", "kept"]
    assert all(int(row[2]) <= int(row[1]) for row in rows[1:])
    assert (made / "channels.png").stat().st_size > 1000
    assert read_state(made / "0")["status"] == "finished"


def test_its_checkpoint_builds_what_the_plan_says(folder: Path) -> None:
    made = folder / "runs" / NAME
    content = read_checkpoint(made / "0" / "checkpoints" / "last.ckpt")
    network = yaml.safe_load(content["exp_config"])["model"]["init_args"]["network"]
    assert network["class_path"] == "models.classifiers.pruned"
    plan = Plan.of(json.loads((made / "plan.json").read_text()))
    assert Plan.of(network["init_args"]["plan"]) == plan
    assert plan.why["criterion"] == "l1"
    started = load_file(made / "start.safetensors")
    for name, sides in plan.layers.items():
        if "out" in sides and f"{name}.weight" in started:
            assert len(started[f"{name}.weight"]) == len(sides["out"].channels)
            assert content["state_dict"][f"network.{name}.weight"].shape == started[f"{name}.weight"].shape


def test_what_is_left_starts_with_the_weights_of_the_run(folder: Path) -> None:
    made = folder / "runs" / NAME
    plan = Plan.of(json.loads((made / "plan.json").read_text()))
    dense = read_checkpoint(folder / "runs/run/0/checkpoints/best.ckpt")["state_dict"]
    weight = dense["network.stem.0.weight"][list(plan.layers["stem.0"]["out"].channels)]
    assert torch.equal(load_file(made / "start.safetensors")["stem.0.weight"], weight)


def test_training_from_scratch_is_prepared(folder: Path) -> None:
    made = folder / "runs" / NAME
    config = yaml.safe_load((made / "scratch.yaml").read_text())
    costs = json.loads((made / "costs.json").read_text())
    assert config["weights"] is None
    assert config["trainer"]["max_epochs"] == costs["scratch_b_epochs"]
    schedule = config["model"]["init_args"]["schedule"]["init_args"]
    assert schedule["warmup_epochs"] == pytest.approx(0.5 * costs["scratch_b_epochs"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--budget=0.001"], "a budget of 0.001 of macs is below what this plan can reach: 0."),
        (["--budget=0.5", "--part=neck", "--name=part"], "ConvNeXt has no part 'neck'"),
        (["--budget=0.5", "--criterion=torch_pruning.importance.Best"], "there is no such class"),
        (["--budget=0.4", f"--name={NAME}"], "holds another pruning: choose another --name, or remove it"),
    ],
)
def test_a_fault_is_one_line_and_leaves_nothing(
    folder: Path, argv: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(Path("runs").iterdir())
    try:
        code = prune.main(["run", *argv])
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err.strip()
    assert code in (1, 2)
    assert message in told
    assert "\n" not in told
    assert sorted(Path("runs").iterdir()) == before
