"""What a checkpoint may be called."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from exp.checkpoint_names import NoCheckpoint, find_checkpoint, find_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Experiment `mine` with runs 0, 2 and 10, of which 2 was trained last and 10 has only begun."""
    for age, (version, names) in enumerate({"0": ("best", "last"), "2": ("best", "last"), "3": ("last",)}.items()):
        folder = tmp_path / "runs" / "mine" / version / "checkpoints"
        folder.mkdir(parents=True)
        for name in names:
            path = folder / f"{name}.ckpt"
            path.touch()
            os.utime(path, (0, {0: 1, 1: 9, 2: 5}[age]))
    (tmp_path / "runs" / "mine" / "10" / "checkpoints").mkdir(parents=True)
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("mine", "2/checkpoints/best.ckpt"),
        ("mine/best", "2/checkpoints/best.ckpt"),
        ("mine/last", "2/checkpoints/last.ckpt"),
        ("{runs}/mine", "2/checkpoints/best.ckpt"),
        ("{runs}/mine/last", "2/checkpoints/last.ckpt"),
        ("{runs}/mine/0", "0/checkpoints/best.ckpt"),
        ("mine/0", "0/checkpoints/best.ckpt"),
        ("mine/0/last", "0/checkpoints/last.ckpt"),
        ("{runs}/mine/3", "3/checkpoints/last.ckpt"),
        ("{runs}/mine/0/checkpoints", "0/checkpoints/best.ckpt"),
        ("{runs}/mine/0/checkpoints/last.ckpt", "0/checkpoints/last.ckpt"),
    ],
)
def test_names_of_a_checkpoint(given: str, file: str, runs: Path) -> None:
    assert find_checkpoint(given.format(runs=runs), runs) == runs / "mine" / file


def test_a_run_of_that_name_comes_before_a_kind_of_checkpoint(runs: Path) -> None:
    (runs / "mine" / "0").rename(runs / "mine" / "best")
    assert find_checkpoint("mine/last", runs) == runs / "mine" / "2" / "checkpoints" / "last.ckpt"
    assert find_checkpoint("mine/best", runs) == runs / "mine" / "best" / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("mien", "no such file, nor a run's directory or an experiment in {runs}; did you mean 'mine'?"),
        ("other/last.ckpt", "other/last.ckpt: no such file"),
        ("mine/10", "{runs}/mine/10: no best.ckpt or last.ckpt in it yet"),
        ("mine/3/best", "{runs}/mine/3: no best.ckpt in it yet"),
    ],
)
def test_what_is_no_checkpoint_is_named(given: str, answer: str, runs: Path) -> None:
    with pytest.raises(NoCheckpoint, match=re.escape(answer.format(runs=runs))):
        find_checkpoint(given, runs)


@pytest.mark.parametrize(
    ("given", "version"),
    [
        ("mine", "2"),
        ("mine/last", "2"),
        ("{runs}/mine", "2"),
        ("{runs}/mine/last", "2"),
        ("mine/0", "0"),
        ("{runs}/mine/10", "10"),
    ],
)
def test_names_of_a_run(given: str, version: str, runs: Path) -> None:
    assert find_run(given.format(runs=runs), runs) == runs / "mine" / version


@pytest.mark.parametrize(("given", "answer"), [("mien/last", "did you mean 'mine'?"), ("empty", "no last.ckpt in it")])
def test_what_is_no_run_is_named(given: str, answer: str, runs: Path) -> None:
    (runs / "empty").mkdir()
    with pytest.raises(NoCheckpoint, match=re.escape(answer)):
        find_run(given, runs)


def test_no_page_tells_a_person_to_use_whatever_run_was_first() -> None:
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        assert not re.search(r"runs/\w+/(\d+/|0\b)", page.read_text()), page
