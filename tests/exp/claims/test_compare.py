"""`python -m exp compare`, run as a person runs it, on digits."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import exp.fit
from exp.cli import Cli
from exp.run_directory import Run
from tests.library.runner import PATIENCE, Ended, run

ROOT = Path(__file__).parents[3]
CLAIM = f"""\
claim: A network that learns beats one that hardly does.
config: {ROOT}/configs/quickstart.yaml
metric: val/top1
unit: percent
seeds: {{first: 3, most: 7, block: 3}}
overrides:
  trainer.max_epochs: 2
  trainer.limit_train_batches: 6
  model.schedule: null
  model.network.options: {{patch_size: 1, depths: [1, 1, 1, 1], dims: [4, 8, 8, 8], kernel_sizes: 3}}
  model.network.options.ls_init_value: 1.0
  checkpoint.every_n_steps: 1
arms:
  slow: {{model.optimizer.lr: 1.0e-6, reference: true}}
  fast: {{model.optimizer.lr: 0.01}}
  tuned: {{after: {{arm: fast, checkpoint: last}}, model.optimizer.lr: 0.001}}
expect:
  - fast > slow
  - tuned < slow
  - macs(fast) <= macs(slow)
  - "'val/loss'(fast) < 'val/loss'(slow)"
"""
COMMAND = [sys.executable, "-m", "exp", "compare", "--config", "claim.yaml", "--wandb=disabled"]


def compare(folder: Path, *options: str) -> Ended:
    return run("compare", ["--config", "claim.yaml", "--wandb=disabled", *options], folder)


def results(folder: Path) -> dict:
    return json.loads((folder / "runs/claims/claim/results.json").read_text())


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A claim that has been run from beginning to end."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "claim.yaml").write_text(CLAIM)
    return folder, compare(folder, "--jobs=2")


def test_runs_every_cell_and_answers_every_expectation(
    compared: tuple[Path, Ended],
) -> None:
    folder, done = compared
    assert done.code == 3, done.output
    result = results(folder)
    assert [(a["expect"], a["verdict"]) for a in result["expectations"]] == [
        ("fast > slow", "holds"),
        ("tuned < slow", "does not hold"),
        ("macs(fast) <= macs(slow)", "holds"),
        ("'val/loss'(fast) < 'val/loss'(slow)", "holds"),
    ]
    assert result["verdict"] == "does not hold"
    # Three seeds settle what is counted, six the rest, and the seventh is not run.
    assert [a["settled"] for a in result["expectations"]] == [6, 6, 3, 6]
    assert (result["looks"], result["planned"], result["seeds"]) == ([3, 6], 7, list(range(6)))
    assert "3 seeds settle 1 of 4 expectations" in done.output
    assert not (folder / "runs/claims/claim/slow/seed6").exists()
    for arm in ("slow", "fast", "tuned"):
        for seed in range(6):
            run = folder / f"runs/claims/claim/{arm}/seed{seed}"
            assert json.loads((run / "run.json").read_text())["status"] == "finished"
            rows = (run / "metrics.csv").read_text().splitlines()
            column = rows[0].split(",").index("val/top1")
            last = [row.split(",")[column] for row in rows[1:] if row.split(",")[column]][-1]
            assert result["arms"][arm]["values"][str(seed)] == pytest.approx(100 * float(last))
    # The second arm's network began where the first one's ended.
    assert result["arms"]["tuned"]["mean"] > result["arms"]["slow"]["mean"] + 20
    assert re.search(r"does not hold +tuned < slow", done.output)


def test_report_and_pictures(compared: tuple[Path, Ended]) -> None:
    folder, _ = compared
    report = folder / "runs/claims/claim"
    text = (report / "report.md").read_text()
    assert "| slow |" in text
    assert "**Does not hold**" in text
    for picture in ("learning_curves.png", "comparison.png"):
        assert picture in text
        assert (report / picture).read_bytes().startswith(b"\x89PNG")
    # All arms cost the same, so there is no curve of accuracy over compute.
    assert not (report / "accuracy_compute.png").exists()
    around = json.loads((report / "circumstances.json").read_text())
    assert around["arms"]["fast"]["0"]["throughput"] > 0
    assert 0 < around["arms"]["fast"]["0"]["latency"] < 1000


def test_finished_cells_are_not_run_again(compared: tuple[Path, Ended]) -> None:
    folder, _ = compared
    before = (folder / "runs/claims/claim/results.json").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("run.json")}
    again = compare(folder)
    assert again.code == 3
    assert "18 of 21 cells were finished before" in again.output
    assert (folder / "runs/claims/claim/results.json").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("run.json")} == times


def test_another_config_runs_again_and_the_old_run_is_kept(compared: tuple[Path, Ended], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(compared[0], folder)
    plan = compare(folder, "--dry-run", "--arms=fast", "--model.optimizer.lr=0.02")
    assert "seed 1: to run again (model.init_args.optimizer.init_args.lr: 0.01 -> 0.02)" in plan.output
    done = compare(folder, "--arms", "fast", "--seeds", "0", "--model.optimizer.lr=0.02")
    assert done.code == 5, done.output
    assert "1 seeds; a verdict needs at least 3" not in done.output
    assert "not run: slow" in done.output
    assert (folder / "runs/claims/claim/fast/stale/seed0-0/run.json").exists()
    # Cells of another config are others: nothing has been seen of them.
    assert (results(folder)["seeds"], results(folder)["looks"]) == ([0], [1])
    assert results(folder)["overrides"] == ["--model.optimizer.lr=0.02"]


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_results(compared: tuple[Path, Ended], tmp_path: Path) -> None:
    folder, _ = compared
    (tmp_path / "claim.yaml").write_text(CLAIM)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*COMMAND, "--jobs=2"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(random.uniform(5, 30))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = compare(tmp_path, "--jobs=2")
    assert done.code == 3, done.output
    assert (tmp_path / "runs/claims/claim/results.json").read_bytes() == (
        folder / "runs/claims/claim/results.json"
    ).read_bytes()


def test_seeds_that_are_added_are_seen_with_those_before(compared: tuple[Path, Ended], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(compared[0], folder)
    more = compare(folder, "--jobs=2", "--seeds", "6", "--arms", "slow", "fast")
    assert more.code == 5, more.output
    result = results(folder)
    assert (result["seeds"], result["looks"], result["planned"]) == (list(range(7)), [3, 6, 7], 7)
    assert (result["expectations"][0]["verdict"], result["expectations"][0]["settled"]) == ("holds", 6)


def test_a_cell_that_diverges_is_an_outcome(tmp_path: Path) -> None:
    # One batch is well, so the trial is; the loss becomes infinite later.
    text = CLAIM.replace("lr: 0.01}", "lr: 1.0e30}").replace("trainer.max_epochs: 2", "trainer.max_epochs: 1")
    (tmp_path / "claim.yaml").write_text(text)
    done = compare(tmp_path, "--jobs=2", "--seeds", *map(str, range(6)))
    assert done.code == 3, done.output
    result = results(tmp_path)
    assert [(a["verdict"], a["settled"]) for a in result["expectations"]] == [
        ("does not hold", 6),
        ("holds", 6),
        ("no verdict", None),
        ("does not hold", 6),
    ]
    assert result["arms"]["fast"]["diverged"] == result["arms"]["tuned"]["diverged"] == list(range(6))
    assert not result["failed"]
    assert "Of fast, seeds 0, 1, 2, 3, 4, 5 diverged." in done.output
    assert "fast seed 0: diverged: its loss ceased to be finite; see runs/claims/claim/fast/seed0.log" in done.output
    again = compare(tmp_path, "--seeds", *map(str, range(6)))
    assert "18 of 18 cells were finished before" in again.output


def break_fast() -> None:
    """Sabotage of `compare`: its fits of one arm fail."""
    train = exp.fit._train

    def broken(cli: Cli, run: Run, leads: bool) -> None:
        if "fast" in str(run.path):
            raise RuntimeError("the roof leaks")
        train(cli, run, leads)

    exp.fit._train = broken


def test_a_failed_cell_stops_no_other_and_takes_its_verdicts(tmp_path: Path) -> None:
    (tmp_path / "claim.yaml").write_text(CLAIM.replace("trainer.max_epochs: 2", "trainer.max_epochs: 1"))
    done = run(
        "compare", ["--config", "claim.yaml", "--wandb=disabled", "--jobs=2", "--seeds", "1"], tmp_path, break_fast
    )
    assert done.code == 1, done.output
    result = results(tmp_path)
    assert [(a["verdict"], a["reason"]) for a in result["expectations"]] == [
        ("no verdict", "without a result: fast seed 1"),
        ("no verdict", "without a result: tuned seed 1"),
        ("no verdict", "without a result: fast seed 1"),
        ("no verdict", "without a result: fast seed 1"),
    ]
    failed = {failure["cell"]: failure["reason"] for failure in result["failed"]}
    assert failed["fast seed 1"].startswith("RuntimeError: the roof leaks")
    assert failed["tuned seed 1"] == "fast seed 1 has no checkpoint"
    assert result["arms"]["slow"]["values"]["1"] is not None


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("metric: val/top1", "metric: val/topp1", 3, "did you mean 'val/top1'?"),
        ("'val/loss'(slow)", "'val/los'(slow)", 21, "did you mean 'val/loss'?"),
        ("  model.schedule: null", "  model.num_classes: 12", 14, "has 12 classes but the data has 10"),
    ],
)
def test_what_no_arm_can_run_is_refused_before_anything_trains(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    assert old in CLAIM
    (tmp_path / "claim.yaml").write_text(CLAIM.replace(old, new))
    done = compare(tmp_path)
    assert done.code == 2
    assert f"claim.yaml, line {line}: " in done.output
    assert message in done.output
    assert not list(tmp_path.glob("runs/claims/claim/*/seed0"))


def test_sigterm_lets_cells_save(tmp_path: Path) -> None:
    """With processes as a person starts them."""
    (tmp_path / "claim.yaml").write_text(CLAIM.replace("trainer.max_epochs: 2", "trainer.max_epochs: 500"))
    process = subprocess.Popen([*COMMAND, "--arms", "slow"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "runs/claims/claim/slow/seed0/checkpoints/last.ckpt"
    end = time.monotonic() + PATIENCE
    while not checkpoint.exists() and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert said == "exp: stopped by SIGTERM; the same command goes on\n"
    assert "stopped by SIGTERM" in (tmp_path / "runs/claims/claim/slow/seed0.log").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arms", "slw"], "no arm 'slw'; choose from slow, fast, tuned"),
        (["--job", "2"], "'--job' is no option of compare"),
        (["--model.optimizer.lrr=1"], "no argument 'lrr'; did you mean 'lr'?"),
        (["--executor=slurm", "--slurm", "time"], "KEY=VALUE"),
    ],
)
def test_mistakes_in_the_command(tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "claim.yaml").write_text(CLAIM)
    done = compare(tmp_path, *options)
    assert done.code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
