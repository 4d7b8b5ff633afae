"""The list of runs: what it says, in which order, and of how many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from exp.__main__ import main
from exp.run_list import lasted, runs_below
from exp.run_state import STATE_FILE
from exp.runs import show

DONE = {"status": "finished", "monitor": "val/top1", "mode": "max", "created": "2026-11-30T10:00:00", "seconds": 75.0}


def make(path: Path, facts: dict[str, Any] | str) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    (path / ".lock").touch()
    (path / STATE_FILE).write_text(facts if isinstance(facts, str) else json.dumps(facts))
    return path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    cost = {"params": 2e6, "macs": 3e9}
    make(
        folder / "small/0",
        DONE | {"created": "2026-11-30T11:00:00", "best": 0.5, "cost": {"params": 1e3, "macs": 5e6}, "network": "Tiny"},
    )
    make(
        folder / "large/2",
        DONE | {"best": 0.75, "cost": cost, "test": {"test/top1": 0.7}, "created": "2026-11-29T10:00:00"},
    )
    make(folder / "large/10", DONE | {"status": "stopped", "best": 0.25, "total_steps": 40, "params": 2e6})
    (folder / "large/10/metrics.csv").write_text("step,epoch,train/loss\n9,0,1.0\n19,0,0.5\n25,")
    make(folder / "claims/mine/arm/seed0", DONE | {"status": "unfinished", "best": None})
    make(folder / "claims/mine/arm/seed1", "torn {")
    (folder / "claims/mine/pictures").mkdir()
    return folder


def names(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines()[1:]]


def test_a_line_says_how_a_run_stands_how_good_it_is_and_what_it_costs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "--sort", "name"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "run state best test params MACs time when"
    assert "large/2 finished 0.7500 val/top1 0.7000 2.00 M 3.00 G 1 min 15 s 2026-11-29 10:00" in lines
    assert "large/10 stopped 50% 0.2500 val/top1 2.00 M 1 min 15 s 2026-11-30 10:00" in lines
    assert [line.split()[:2] for line in lines[1:3]] == [[f"claims/mine/arm/seed{i}", "died"] for i in (0, 1)]


def test_who_runs_is_told_by_the_process(runs: Path) -> None:
    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); "
        "time.sleep(99)"
    )
    lock = runs / "claims/mine/arm/seed0/.lock"
    states = lambda: {run.name: run.state for run in runs_below(runs)}  # noqa: E731
    with subprocess.Popen([sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert states()["claims/mine/arm/seed0"] == "running"
        process.kill()
    assert states()["claims/mine/arm/seed0"] == "died"


@pytest.mark.parametrize(
    ("argv", "first"),
    [
        ("--sort when", ["small/0", "large/10"]),
        ("--sort best", ["large/2", "small/0", "large/10"]),
        ("--sort best --reverse", ["large/10", "small/0", "large/2"]),
        ("--sort macs", ["small/0", "large/2"]),
        ("--sort test", ["large/2"]),
        ("--sort best --last 1", ["large/2"]),
        ("large --sort name", ["large/10", "large/2"]),
        ("tiny", ["small/0"]),
        ("--state finished --sort params", ["small/0", "large/2"]),
    ],
)
def test_runs_are_sorted_and_filtered(
    argv: str, first: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", *argv.split()]) == 0
    assert names(capsys.readouterr().out)[: len(first)] == first


def test_of_losses_less_is_better(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, best in (("a", 0.5), ("b", 0.25)):
        make(runs / "losses" / name, DONE | {"best": best, "monitor": "val/loss", "mode": "min"})
    assert main(["runs", "losses", "--sort", "best"]) == 0
    assert names(capsys.readouterr().out) == ["losses/b", "losses/a"]


def test_programs_get_an_object_a_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "large", "--json", "--sort", "best"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (first["run"], first["best"], first["macs"], first["test"]) == ("large/2", 0.75, 3e9, {"test/top1": 0.7})


def test_what_is_not_there_is_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "nothing"]) == 1
    assert capsys.readouterr().err == "exp: there is no run of nothing in runs\n"
    assert main(["runs", "--state", "dead"]) == 2
    assert "--state dead: choose from running, finished" in capsys.readouterr().err


def test_a_narrow_terminal_does_without_some_columns(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(list(runs_below(runs)), width=60)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "best"]
    assert all(len(line) <= 60 for line in lines)


def test_ten_thousand_runs_are_listed_in_seconds_and_without_torch(tmp_path: Path) -> None:
    text = json.dumps(DONE | {"best": 0.5})
    for i in range(2000):
        path = tmp_path / "runs" / str(i // 100) / str(i % 100)
        path.mkdir(parents=True)
        (path / STATE_FILE).write_text(text)
    started = time.process_time()
    assert len([run.cells() for run in runs_below(tmp_path / "runs")]) == 2000
    # A fifth of ten thousand; 0.1 s on a quiet core.
    assert time.process_time() - started < 2
    code = "import sys, exp.runs; assert not {'torch', 'matplotlib', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], env=os.environ)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (75, "1 min 15 s"), (3 * 3600 + 60, "3 h 1 min"), (90000, "1 d 1 h")]
)
def test_times(seconds: float, told: str) -> None:
    assert lasted(seconds) == told
