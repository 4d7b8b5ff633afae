"""Early exit from the command line: thresholds that travel with the run, budgets that are obeyed, mistakes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from datamodules import Digits
from models.anytime import confidence, exit_costs
from models.classifiers import DVT
from tests.library.runner import PATIENCE, SMALL, run

ROOT = Path(__file__).parents[2]
SIZES: dict[str, Any] = {
    "host": "deit",
    "num_classes": 10,
    "image_size": 8,
    "grids": [1, 2, 4],
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "reuse_dim": 8,
    "reuse_hidden_dim": 16,
}
CONFIG = [
    "--trainer.max_epochs=4",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model=Classification",
    f"--model.network={json.dumps({'class_path': 'models.classifiers.DVT', 'init_args': SIZES})}",
    "--model.optimizer=torch.optim.AdamW",
    "--model.optimizer.lr=0.01",
    "--data=Digits",
    "--data.batch_size=50",
    "--wandb=disabled",
    "--experiment=run",
]
CHECKPOINT = "runs/run/0/checkpoints/best.ckpt"
IMAGES = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network with three exits, and images."""
    folder = tmp_path_factory.mktemp("run")
    ended = run("fit", CONFIG, folder)
    assert ended.code == 0, ended.output
    for name in ("plots/exit_curve.png", "plots/early_exits.png", "thresholds.json"):
        assert (folder / "runs/run/0" / name).stat().st_size > 0
        assert name in ended.output
    data = Digits()
    (folder / "images").mkdir()
    for i in range(IMAGES):
        Image.fromarray(data.raw_image("test", i)).save(folder / f"images/{i:03d}.png")
    return folder


def trained(folder: Path) -> DVT:
    network = DVT(**SIZES)
    state = torch.load(folder / CHECKPOINT, weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    return network.eval()


def predict(folder: Path, *options: str) -> tuple[list[dict[str, str]], dict[str, Any], str]:
    ended = run("predict", [f"--ckpt_path={CHECKPOINT}", "images", *options], folder)
    assert ended.code == 0, ended.output
    with (folder / "runs/run/0/predict/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / "runs/run/0/predict/compute.json").read_text()), ended.output


def test_thresholds_of_the_run_are_those_of_the_tested_checkpoint(folder: Path) -> None:
    state = torch.load(folder / CHECKPOINT, weights_only=True)["callbacks"]["ExitCurve"]
    assert json.loads((folder / "runs/run/0/thresholds.json").read_text()) == state
    assert state["costs"] == exit_costs(trained(folder), (3, 8, 8))
    assert run("test", [f"--ckpt_path={CHECKPOINT}"], folder).code == 0
    tested = json.loads((folder / "runs/run/0/test/metrics.json").read_text())
    assert tested == pytest.approx(json.loads((folder / "runs/run/0/run.json").read_text())["test"])
    assert {"test/top1_at_50", "test/top1_random_at_50", "test/auc_budgeted"} <= tested.keys()


@pytest.mark.parametrize("budget", [0.3, 1.0])
def test_a_budget_is_obeyed_by_leaving(budget: float, folder: Path) -> None:
    rows, spent, output = predict(folder, f"--budget={budget}")
    state = torch.load(folder / CHECKPOINT, weights_only=True)["callbacks"]["ExitCurve"]
    point = [point for point in state["points"] if point["share"] <= budget + 1e-9][-1]
    limits = [{"never": 1e8, "always": -1e8}.get(value, value) for value in point["thresholds"]]

    data = Digits()
    data.predict_paths = [folder / "images"]
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.predict_dataloader()]
    with torch.no_grad():
        parts = [trained(folder)(batch["image"]) for batch in batches]
    logits = torch.stack([torch.cat(exit) for exit in zip(*parts, strict=True)])
    sure = confidence(logits)
    exits = [next(k for k in range(3) if sure[k, n] >= limits[k]) for n in range(IMAGES)]
    # Batches that shrink sum in another order, so who is this close to a threshold may go either way.
    clear = (sure - torch.tensor(limits)[:, None]).abs().amin(0) > 1e-5
    assert [int(row["exit"]) for row, c in zip(rows, clear, strict=True) if c] == [
        exit for exit, c in zip(exits, clear, strict=True) if c
    ]
    for row, n in zip(rows, range(IMAGES), strict=True):
        best = logits[int(row["exit"]), n].softmax(0).max().item()
        assert float(row["probability_1"]) == pytest.approx(best, abs=1e-3)

    costs = exit_costs(trained(folder), (3, 8, 8))
    mean = sum(costs[int(row["exit"])] for row in rows) / IMAGES
    assert spent["macs"] == pytest.approx(mean)
    assert spent["share"] == pytest.approx(mean / costs[-1])
    assert spent["exit_shares"] == pytest.approx(
        [sum(row["exit"] == str(k) for row in rows) / IMAGES for k in range(3)]
    )
    # Counted on the first batch: up to a twentieth of it is carried along after it has left.
    first = sum(costs[int(row["exit"])] for row in rows[:50]) / 50
    assert first * (1 - 1e-9) <= spent["executed_macs"] <= min(first + 0.05 * costs[-1], costs[-1]) * (1 + 1e-9)
    assert spent["executed_samples"] == 50
    assert spent["seconds_per_image"] > 0
    assert f"for a budget of {budget:.1%}" in output
    if budget < 1:
        assert spent["executed_macs"] < 0.9 * costs[-1]


def test_without_a_budget_every_image_takes_the_last_exit(folder: Path) -> None:
    rows, spent, output = predict(folder)
    assert "exit" not in rows[0]
    assert spent["executed_macs"] == exit_costs(trained(folder), (3, 8, 8))[-1]
    assert "budget" not in spent
    assert "executed: " in output


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--budget=0"], "--budget 0: it is a share of the last exit's multiply-adds, in (0, 1]"),
        (["--budget=1.5"], "--budget 1.5: it is a share"),
        (["--budget=half"], "budget: expected float, got 'half'"),
        (["--budget=0.001"], "does not reach the first exit"),
        (["--thresholds=thresholds.json"], "give both, or none"),
        (["--budget=0.5", "--thresholds=nowhere.json"], "nowhere.json: No such file"),
        (["--budget=0.5", "--thresholds=output.txt"], "output.txt: not JSON"),
        (["--budget=0.5", "--thresholds=runs/run/0/run.json"], "these are no thresholds of exp"),
    ],
)
def test_mistakes_are_answered_in_one_line(options: list[str], answer: str, folder: Path) -> None:
    ended = run("predict", [f"--ckpt_path={CHECKPOINT}", "images", *options], folder)
    assert ended.code == 2, ended.output
    assert len(ended.output.strip().splitlines()) == 1, ended.output
    assert ended.output.startswith("exp: ")
    assert answer in ended.output


def test_thresholds_of_another_network_are_refused(folder: Path) -> None:
    plain = json.loads((folder / "runs/run/0/thresholds.json").read_text())
    plain["costs"] = plain["costs"][1:]
    plain["points"] = [{**point, "thresholds": point["thresholds"][1:]} for point in plain["points"]]
    (folder / "two.json").write_text(json.dumps(plain))
    ended = run("predict", [f"--ckpt_path={CHECKPOINT}", "images", "--budget=0.5", "--thresholds=two.json"], folder)
    assert ended.code == 2
    assert "the policy has 2 thresholds, but the network has 3 exits" in ended.output


def test_a_checkpoint_without_thresholds_says_how_to_solve_them(folder: Path, tmp_path: Path) -> None:
    content = torch.load(folder / CHECKPOINT, weights_only=True)
    del content["callbacks"]["ExitCurve"]
    (tmp_path / CHECKPOINT).parent.mkdir(parents=True)
    torch.save(content, tmp_path / CHECKPOINT)
    shutil.copytree(folder / "images", tmp_path / "images")
    arguments = [f"--ckpt_path={CHECKPOINT}", "images", "--budget=0.5"]
    ended = run("predict", arguments, tmp_path)
    assert ended.code == 2
    command = f"`python -m exp validate --ckpt_path {CHECKPOINT}`"
    option = "--thresholds runs/run/0/validate/thresholds.json"
    assert command in ended.output
    assert option in ended.output
    assert run("validate", [f"--ckpt_path={CHECKPOINT}"], tmp_path).code == 0
    rows, *_ = predict(tmp_path, "--budget=0.5", *option.split())
    assert rows == predict(folder, "--budget=0.5")[0]


def test_a_network_without_exits_has_no_budget(folder: Path, tmp_path: Path) -> None:
    assert run("fit", [*SMALL, "--experiment=run", "--trainer.max_epochs=2"], tmp_path).code == 0
    ended = run("predict", [f"--ckpt_path={CHECKPOINT}", str(folder / "images"), "--budget=0.5"], tmp_path)
    assert ended.code == 2
    assert "has no exits where images could leave" in ended.output
    assert len(ended.output.strip().splitlines()) == 1


def test_the_config_chooses_criterion_and_solver(tmp_path: Path) -> None:
    given = '[{"class_path": "ExitCurve", "init_args": {"criterion": "entropy", "solver": "pareto"}}]'
    ended = run("fit", [*CONFIG, "--trainer.max_epochs=1", "--test=false", f"--trainer.callbacks={given}"], tmp_path)
    assert ended.code == 0, ended.output
    plain = json.loads((tmp_path / "runs/run/0/thresholds.json").read_text())
    assert (plain["criterion"], plain["solver"]) == ("entropy", "pareto")


def test_two_processes_solve_what_one_does(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    # 175 images: of the last 25 one process gets 13, the other 12.
    arguments = [f"--ckpt_path={CHECKPOINT}", "--data.holdout=175"]
    assert run("validate", arguments, tmp_path).code == 0
    results = tmp_path / "runs/run/0/validate"
    one = {name: json.loads((results / name).read_text()) for name in ("metrics.json", "thresholds.json")}
    shutil.rmtree(results)
    command = [sys.executable, "-m", "exp", "validate", *arguments, "--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    two = {name: json.loads((results / name).read_text()) for name in one}
    assert two["metrics.json"] == pytest.approx(one["metrics.json"], abs=1e-5)
    first, second = one["thresholds.json"], two["thresholds.json"]
    assert second["validation_samples"] == first["validation_samples"] == 175
    assert [point["share"] for point in second["points"]] == pytest.approx([p["share"] for p in first["points"]])
    assert (results / "exit_curve.png").stat().st_size > 0
