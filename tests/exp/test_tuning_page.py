"""docs/tuning.md pastes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from exp.cli import resolve
from exp.words import spelled_out
from tests.library.recipes import ROOT

PAGE = (ROOT / "docs/tuning.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    match = re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None
    return match[1]


def test_a_sweep_calls_what_there_is() -> None:
    sweep = yaml.safe_load(block("yaml"))
    chosen = {key: each.get("values", [each.get("min")])[0] for key, each in sweep["parameters"].items()}
    *_, command, config, name, resume, _ = sweep["command"]
    assert command == "fit"
    argv = [config, name, resume, *(f"--{key}={value}" for key, value in chosen.items())]
    plain = resolve(spelled_out("fit", argv))
    assert plain["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.0001


@pytest.mark.parametrize("line", re.findall(r"^    exp fit (quickstart --trainer\.[^#\n]*)", PAGE, re.MULTILINE))
def test_loggers_and_callbacks_are_known_by_their_classes(line: str) -> None:
    argv = shlex.split(line)
    key, name = argv[1].removeprefix("--trainer."), argv[2]
    (found,) = found if isinstance(found := resolve(spelled_out("fit", argv))["trainer"][key], list) else [found]
    assert found["class_path"].rpartition(".")[2] == name


def test_a_study_is_python() -> None:
    compile(block("python"), "study.py", "exec")


@pytest.mark.slow
def test_a_study_runs_prunes_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    script = block("python").replace('TRIALS = "val/top1", 20', 'TRIALS = "val/top1", 3')
    script = script.replace("max_epochs=10", "max_epochs=4").replace(
        "n_startup_trials=5, n_warmup_steps=20", "n_startup_trials=1"
    )
    (tmp_path / "study.py").write_text(script)
    for last in ("2", "5"):
        subprocess.run([sys.executable, "study.py"], cwd=tmp_path, check=True)
        facts = json.loads((tmp_path / "runs/study" / last / "run.json").read_text())
        assert facts["status"] in ("finished", "stopped")
