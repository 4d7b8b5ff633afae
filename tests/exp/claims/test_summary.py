"""docs/claims.md and the committed results agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exp.claims.cells import plan
from exp.claims.claim_file import read_claim
from exp.claims.summary import BEGIN, END, SummaryError, summarise

ROOT = Path(__file__).parents[3]
CLAIMS = sorted((ROOT / "configs/claims").glob("*.yaml"))


def test_page_shows_the_committed_results(tmp_path: Path) -> None:
    page = ROOT / "docs/claims.md"
    before = page.read_text()
    copy = tmp_path / "claims.md"
    copy.write_text(before)
    (tmp_path / "claims").symlink_to(ROOT / "docs/claims")
    summarise(copy, tmp_path / "claims")
    assert copy.read_text() == before
    for result in (ROOT / "docs/claims").glob("*/results.json"):
        assert json.loads(result.read_text())["claim"] in before


def test_only_the_table_is_rewritten(tmp_path: Path) -> None:
    page = tmp_path / "claims.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    folder = tmp_path / "claims/one"
    folder.mkdir(parents=True)
    expectation = {"expect": "|a - b| < 1", "verdict": "holds"}
    result = {"claim": "One.", "verdict": "holds", "seeds": [0, 1, 2], "expectations": [expectation]}
    (folder / "results.json").write_text(json.dumps(result))
    around = {"date": "2026-01-01", "commit": "abc", "machine": "2 CPU cores"}
    (folder / "circumstances.json").write_text(json.dumps(around))
    summarise(page, tmp_path / "claims")
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("above", "below")
    row = r"| [One.](claims/one/report.md) | **holds** | `\|a - b\| < 1` holds | 3 | 2026-01-01, abc, 2 CPU cores |"
    assert row in lines
    assert "old" not in lines


@pytest.mark.parametrize(
    "change",
    [
        {"claim": f"One. {END}"},
        {"claim": "One.\nTwo."},
        {"claim": 1},
        {"seeds": 3},
        {"expectations": [1]},
        {"verdict": None},
    ],
)
def test_a_result_that_is_more_than_a_row(change: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "claims.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    folder = tmp_path / "claims/one"
    folder.mkdir(parents=True)
    result = {"claim": "One.", "verdict": "holds", "seeds": [0], "expectations": []} | change
    (folder / "results.json").write_text(json.dumps(result))
    (folder / "circumstances.json").write_text(json.dumps({"date": "today", "commit": "abc", "machine": "one"}))
    with pytest.raises(SummaryError, match="claims/one: not a result of compare"):
        summarise(page, tmp_path / "claims")
    assert page.read_text() == f"{BEGIN}\n{END}\n"


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "claims.md"
    with pytest.raises(SummaryError, match="no such page"):
        summarise(page, tmp_path)
    page.write_text("text")
    with pytest.raises(SummaryError, match="goes between the lines"):
        summarise(page, tmp_path)


@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.stem)
def test_every_shipped_claim_can_be_planned(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    claim = read_claim(path)
    cells = plan(claim, claim.arms, claim.seeds.listed, tmp_path, [])
    assert len(cells) == len(claim.arms) * len(claim.seeds.listed)
    assert len(claim.seeds.listed) >= 3
