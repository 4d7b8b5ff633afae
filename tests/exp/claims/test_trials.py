"""Each arm is tried once as it is, by whichever command comes first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from exp.claims import trials
from exp.claims.cells import Cell, State
from exp.claims.claim_file import Arm, Claim, ClaimError, read_claim
from exp.claims.first_batch import Trial
from exp.claims.trials import try_out

CLAIM = """\
claim: One beats the other.
config: {config}
metric: val/top1
seeds: [0, 1, 2]
arms: {{one: {{}}, other: {{}}}}
expect: {expect}
"""


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of cells that are tried, in this process, each of which logs an accuracy."""
    names: list[str] = []

    def first_batch(command: list[str]) -> Trial:
        names.append(command[0])
        return Trial("it is broken" if "broken" in command else "", {"val/top1": 0.5, "val/loss": 1.0})

    def pool(jobs: int) -> Any:
        apply: Callable[..., Any] = map
        return contextlib.nullcontext(SimpleNamespace(map=apply))

    monkeypatch.setattr(trials, "try_first_batch", first_batch)
    monkeypatch.setattr(trials, "_pool", pool)
    return names


def claim(folder: Path, expect: str = "one > other") -> Claim:
    (folder / "fit.yaml").write_text("")
    (folder / "claim.yaml").write_text(CLAIM.format(config=folder / "fit.yaml", expect=expect))
    return read_claim(folder / "claim.yaml")


def cells(folder: Path, seed: int = 0, **config: Any) -> list[Cell]:
    made = []
    for name in ("one", "other"):
        settings = config | {"name": name, "seed_everything": seed}
        identity = {"config": settings, "arm": {}, "code": {}, "after": None}
        command = [f"{name} seed {seed}", *config]
        made.append(Cell(Arm(name, {}, ()), seed, folder / name / f"seed{seed}", command, settings, identity))
    return made


def test_an_arm_is_tried_again_when_it_has_changed(tmp_path: Path, tried: list[str]) -> None:
    console = Console(quiet=True)
    for arguments in ({}, {}, {"seed": 3}):
        try_out(claim(tmp_path), cells(tmp_path, **arguments), 1, tmp_path, console)
        assert tried == ["one seed 0", "other seed 0"]
    changed = [cells(tmp_path)[0], cells(tmp_path, lr=2)[1]]
    try_out(claim(tmp_path), changed, 1, tmp_path, console)
    assert tried[2:] == ["other seed 0"]
    changed = cells(tmp_path, lr=3)
    changed[0].state = State.FINISHED
    try_out(claim(tmp_path), changed, 1, tmp_path, console)
    assert tried[3:] == ["other seed 0"]
    for damaged in ("", "[]", "{", '{"a": 3}'):
        (tmp_path / "tried.json").write_text(damaged)
        try_out(claim(tmp_path), cells(tmp_path), 1, tmp_path, console)
        assert tried[-2:] == ["one seed 0", "other seed 0"]
    assert len(tried) == 4 + 8


def test_a_metric_that_an_arm_did_not_log_is_missed_without_another_trial(tmp_path: Path, tried: list[str]) -> None:
    wrong = claim(tmp_path, "\"'val/los'(one) < 'val/los'(other)\"")
    for _ in range(2):
        with pytest.raises(ClaimError, match=r"did you mean 'val/loss'\?"):
            try_out(wrong, cells(tmp_path), 1, tmp_path, Console(quiet=True))
    assert len(tried) == 2


def test_an_arm_that_does_not_run_is_tried_again(tmp_path: Path, tried: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(ClaimError, match="arm 'one' does not run: it is broken"):
            try_out(claim(tmp_path), cells(tmp_path, broken=True), 1, tmp_path, Console(quiet=True))
    assert len(tried) == 4
