"""What cells took, and what the others still will."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from exp.claims import cells as cells_module
from exp.claims.cells import Cell, State
from exp.claims.claim_file import Arm, Claim, read_claim
from exp.claims.display import Display
from exp.claims.remaining import PUBLISHED, Remaining, minutes, rounded
from exp.claims.results import circumstances

ROOT = Path(__file__).parents[3]
# A published claim may take so many times what its file says, on machines and days that differ.
LENIENCE = 2


def cell(folder: Path, arm: str, seed: int, wall: float | None = None) -> Cell:
    """A cell that took so many seconds, or that has to run."""
    made = Cell(Arm(arm, {}, ()), seed, folder / arm / f"seed{seed}", [], {"trainer": {}}, {})
    made.path.mkdir(parents=True)
    if wall is not None:
        made.state = State.FINISHED
        made.note(wall=wall)
    return made


def test_wall_seconds_are_those_of_all_resumptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(cells_module.time, "time", lambda: now)
    one = cell(tmp_path, "a", 0)
    assert one.wall() == 0
    one.begins()
    now = 1020.0
    one.ends()
    assert one.wall() == 20
    # Killed with the command that started it: its log is the last that was heard of it.
    now = 2000.0
    one.begins()
    one.log.write_text("epoch 1\n")
    os.utime(one.log, (2007, 2007))
    now = 3000.0
    one.begins()
    now = 3003.0
    one.ends()
    assert one.wall() == 30
    for wrong in ("x", [1], 10**400):
        one.note(wall=wrong, started=wrong)
        assert one.wall() == 0


def test_cells_of_the_same_arm_tell_first_then_others_then_the_published_result(tmp_path: Path) -> None:
    published = tmp_path / "published"
    new = [cell(tmp_path, arm, seed) for arm in ("a", "b") for seed in (0, 1)]
    assert Remaining("claim", 1, published).seconds(new) is None
    assert Remaining("claim", 1, published).sentence(new) == ""
    (published / "claim").mkdir(parents=True)
    arms = {"a": {"0": {"seconds": 5, "wall": 20}}, "b": {"0": {"seconds": 40, "throughput": None}}}
    (published / "claim/circumstances.json").write_text(json.dumps({"arms": arms}))
    assert Remaining("claim", 1, published).seconds(new) == 20 + 20 + 40 + 40
    assert Remaining("claim", 2, published).sentence(new) == ", about 60 s left with 2 jobs"
    # The longest cell cannot be shared.
    assert Remaining("claim", None, published).seconds(new) == 40
    done = [cell(tmp_path, "a", 2, 100), cell(tmp_path, "a", 3, 300), cell(tmp_path, "a", 4, 120)]
    assert Remaining("claim", 1, published).seconds([*done, *new]) == 4 * 120
    done.append(cell(tmp_path, "b", 4, 500))
    remaining = Remaining("claim", 1, published)
    assert remaining.seconds([*done, *new]) == 2 * 120 + 2 * 500
    new[0].state = new[2].state = State.RUNNING
    assert remaining.seconds([*done, *new], {new[0].path: 30, new[2].path: 900}) == 90 + 120 + 0 + 500
    for each in new:
        each.state = State.FAILED
    assert remaining.seconds([*done, *new]) == 0


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"arms": 3}', '{"arms": {"a": [1]}}'], ids=range(5))
def test_a_published_result_that_tells_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    (tmp_path / "claim/circumstances.json").write_text(content)
    assert Remaining("claim", 1, tmp_path).seconds([cell(tmp_path, "a", 0)]) is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(3, "10 s"), (44, "40 s"), (91, "2 min"), (3600, "1 h 0 min"), (4790, "1 h 20 min")]
)
def test_times_as_people_say_them(seconds: float, said: str) -> None:
    assert rounded(seconds) == said


def test_the_display_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = read_claim(ROOT / "configs/claims/dvt.yaml")
    # Where nothing is published.
    monkeypatch.chdir(tmp_path)
    cells = [cell(tmp_path, "none", 0, 60), cell(tmp_path, "none", 1), cell(tmp_path, "none", 2)]
    said = io.StringIO()
    with Display(claim, cells, Console(file=said, width=200), 2, [cell(tmp_path, "none", 3)]) as display:
        display.started(cells[1])
        cells[1].state, cells[1].reason = State.FAILED, "no reason"
        cells[1].note(wall=200)
        display.ended(cells[1])
    lines = said.getvalue().splitlines()
    assert lines[0] == "1 of at most 4 cells, about 2 min left with 2 jobs"
    assert lines[-1] == "[1/at most 4] none seed 1: failed: no reason (3:20), about 60 s left with 2 jobs"


def test_circumstances_keep_what_a_claim_took(tmp_path: Path) -> None:
    around = circumstances([cell(tmp_path, "a", 0, 90), cell(tmp_path, "a", 1, 150), cell(tmp_path, "b", 1)], 2)
    assert (around["minutes"], around["jobs"]) == (2.0, 2)
    assert {seed: times["wall"] for seed, times in around["arms"]["a"].items()} == {"0": 90, "1": 150}
    assert minutes(around) == 2.0
    # Results of before said what training took.
    assert minutes({"arms": {"a": {"0": {"seconds": 90.0}, "1": {"seconds": None}}, "b": {"0": {"seconds": 30}}}}) == 1


def committed() -> list[Claim]:
    return [read_claim(file) for file in sorted((ROOT / "configs/claims").glob("*.yaml"))]


@pytest.mark.parametrize("claim", committed(), ids=lambda claim: claim.name)
def test_a_published_claim_took_at_most_twice_the_minutes_that_it_promises(claim: Claim) -> None:
    file = ROOT / PUBLISHED / claim.name / "circumstances.json"
    if claim.minutes is not None and file.exists():
        assert minutes(json.loads(file.read_text())) <= LENIENCE * claim.minutes
