"""Growth with recorded runs, with the cells of a claim, and with processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.growth.measuring import Case, Work

CONFIG = "configs/quickstart.yaml"
FACTS = {
    "status": "finished",
    "created": "2026-11-30T10:00:00",
    "finished": "2026-11-30T10:01:15",
    "seconds": 75.0,
    "monitor": "val/top1",
    "mode": "max",
    "test": {"test/top1": 0.625},
    "cost": {"params": 1e6, "macs": 5e6},
}
# Lines of a run's table of metrics, and what of a claim there is to compare.
LOGGED = 100
ARMS = ("slow", "fast")
CLAIM = """\
claim: Growth is linear.
config: {config}
metric: val/top1
seeds: {seeds}
arms:
  slow: {{}}
  fast: {{model.init_args.label_smoothing: 0.0}}
expect: fast > slow
"""


def record(path: Path, number: int) -> None:
    """Writes what a finished run leaves, without weights and pictures."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(FACTS | {"best": 0.5 + number % 97 / 1000}))
    (path / "config.yaml").write_text(Path(CONFIG).read_text())
    rows = (f"{step},0,{1 / (step + 1)},{0.5 + number % 97 / 1000},900\n" for step in range(LOGGED))
    (path / "metrics.csv").write_text("step,epoch,train/loss,val/top1,train/images_per_second\n" + "".join(rows))


def quietly(command: list[str]) -> Work:
    """A command of exp, without what it prints."""
    from exp.__main__ import main

    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            code = main(command)
        # Verdicts have exit codes of their own.
        if code not in (0, 3, 4, 5):
            raise SystemExit(f"{command}: {code} {said.getvalue()}")

    return work


def _recorded(count: int, folder: Path) -> None:
    for number in range(count):
        record(folder / "runs" / f"experiment{number // 50}" / str(number % 50), number)


def listed(count: int, folder: Path) -> Work:
    """`exp runs`."""
    _recorded(count, folder)
    return quietly(["runs", f"--runs={folder / 'runs'}"])


def one_reported(count: int, folder: Path) -> Work:
    """`exp report` of one among many."""
    _recorded(count, folder)
    return quietly(["report", "experiment0/0", f"--runs={folder / 'runs'}"])


def reported(count: int, folder: Path) -> Work:
    """`exp report` of all; a page has room for 60."""
    _recorded(count, folder)
    names = [f"experiment{number // 50}/{number % 50}" for number in range(count)]
    return quietly(["report", *names, f"--runs={folder / 'runs'}"])


def compared(count: int, folder: Path) -> Work:
    """`exp compare` on cells that have all been run: plan, verdict, pictures and report."""
    from exp.claims.cells import plan
    from exp.claims.claim_file import read_claim

    seeds = max(1, count // len(ARMS))
    file = folder / "claim.yaml"
    file.write_text(CLAIM.format(config=CONFIG, seeds=list(range(seeds))))
    claim = read_claim(file)
    arms = ARMS if count >= len(ARMS) else ARMS[:1]
    for number, cell in enumerate(plan(claim, arms, range(seeds), folder / "runs", [])):
        record(cell.path, number)
        cell.note(identity=cell.identity)
    return quietly(["compare", f"--config={file}", f"--runs={folder / 'runs'}", "--wandb=disabled", "--arms", *arms])


def trained(count: int, folder: Path) -> Work:
    """`exp fit` for an epoch, with two ends a process."""

    def work() -> None:
        command = [sys.executable, "-m", "exp", "fit", f"--config={CONFIG}", f"--runs={folder}", "--wandb=disabled"]
        options = ["--trainer.max_epochs=1", f"--trainer.devices={count}"]
        subprocess.run([*command, *options], check=True, capture_output=True, env=os.environ | {"PYTHONPATH": "."})

    return work


CASES = {
    "runs": [
        Case("exp runs", (1, 100, 1_000, 10_000), listed),
        Case("exp report of one of them", (1, 100, 1_000, 10_000), one_reported),
        Case("exp report of all (at most 60)", (1, 10, 60), reported),
    ],
    "cells": [Case("exp compare, all recorded", (1, 10, 100, 1_000), compared)],
    "processes": [Case("exp fit, one epoch of digits", (1, 2), trained)],
}
