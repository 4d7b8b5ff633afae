"""Two pilot seeds tell what a claim could settle, before anything long runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from exp.claims.cells import Cell, State
from exp.claims.claim_file import Claim, read_claim
from exp.claims.pilot import pilot_seeds, tell
from exp.claims.sequential import Looks
from exp.claims.statistics import half_width, level, seeds_for

CLAIM = """\
claim: One.
config: {config}
metric: val/top1
unit: percent
seeds: {{first: 6, most: 16}}
arms:
  a: {{}}
  b: {{}}
expect: [a > b, macs(a) <= macs(b), "|a - b| < 9", "'val/other'(a) > 3"]
"""
VALUES = {("a", 1000): 0.93, ("a", 1001): 0.95, ("b", 1000): 0.90, ("b", 1001): 0.91}


class Measured(Cell):
    """A finished cell with made-up numbers."""

    def value(self, metric: str, at: str, better: str) -> float:
        return float("nan") if metric == "val/other" else VALUES[self.arm.name, self.seed]

    def logged(self, metric: str) -> bool:
        return metric != "val/other"

    def cost(self) -> dict[str, float]:
        return {"macs": 5.0, "params": 7.0}

    def wall(self) -> float:
        return 30.0


def cells(claim: Claim, seeds: list[int], state: State) -> list[Cell]:
    return [
        Measured(arm, seed, Path(arm.name) / str(seed), [], {}, {}, state=state)
        for seed in seeds
        for arm in claim.arms.values()
    ]


@pytest.fixture
def claim(tmp_path: Path) -> Claim:
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "claim.yaml").write_text(CLAIM.format(config=tmp_path / "config.yaml"))
    return read_claim(tmp_path / "claim.yaml")


def test_pilots_are_seeds_that_do_not_count(claim: Claim) -> None:
    assert pilot_seeds(claim) == [1000, 1001]
    claim.seeds.listed.append(1000)
    assert pilot_seeds(claim) == [1001, 1002]


def test_what_the_pilots_tell(claim: Claim) -> None:
    told = io.StringIO()
    pilots = cells(claim, pilot_seeds(claim), State.FINISHED)
    tell(claim, pilots, cells(claim, claim.seeds.listed, State.NEW), 2, Console(file=told, width=200))
    table = " ".join(told.getvalue().split())
    # Differences of 3 and 4 points: 3.5 in the mean, 0.71 apart; within nine, the upper end is 5.5 away.
    needed = seeds_for(3.5, 0.5**0.5)
    half = f"{half_width(0.5**0.5, 16, level(Looks((6, 8, 10, 12, 14, 16), 16), 5)):.2g} %"
    assert f"a > b +3.5 % 0.71 % {half} about {needed} seeds" in table
    assert f"|a - b| < 9 +5.5 % 0.71 % {half} about 6 seeds" in table
    assert "macs(a) <= macs(b) +0 none any 3 seeds: it does not vary" in table
    assert "'val/other'(a) > 3 nothing, for a pilot has no result" in table
    assert "6 seeds: 12 cells, 3 min with 2 at a time" in table
    assert "16 seeds: 32 cells, 8 min with 2 at a time" in table
