"""Table, count and page say what the committed results say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from exp.claims.cells import plan
from exp.claims.claim_file import read_claim
from exp.claims.committed import SummaryError, read_results
from exp.claims.summary import BEGIN, END, PAGE, README, TABLE, summarise, texts
from tests.library.claim_results import AROUND, HOLDS, lay_down, made_up
from tests.library.recipes import ROOT

CLAIMS = sorted((ROOT / "configs/claims").glob("*.yaml"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's folder without results."""
    monkeypatch.chdir(tmp_path)
    for path in (README, TABLE):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    return tmp_path


def test_pages_show_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    results = read_results()
    # What has changed in the code since is that of the day on which the page was written.
    today = re.compile(r'<(dd|span) class="today">[^<]*<')
    for path, text in texts(results, {each.folder.name: [] for each in results}).items():
        same = today.sub("", text) == today.sub("", path.read_text())
        assert same, f"{path} is not what the results say: run `python -m exp compare --summary`"
    assert len(results) == (ROOT / PAGE).read_text().count("<article")


def test_only_what_is_between_the_marks_is_rewritten(here: Path) -> None:
    lay_down(here / "docs/claims/one", made_up(expectations=[HOLDS | {"expect": "|new - old| < 1"}]))
    lines = summarise()
    assert lines[0] == "docs/claims.md, docs/claims/index.html and README.md: 1 results"
    assert lines[-1] == "1 of 1 results would be measured again"
    for path in (README, TABLE):
        lines = path.read_text().splitlines()
        assert (lines[0], lines[-1]) == ("above", "below")
        assert "old" not in lines
    row = r"| [New beats old.](claims/one/report.md) | **holds** | `\|new - old\| < 1` holds | 2 |"
    assert f"{row} 2026-01-02, abc1234, 2 CPU cores |" in TABLE.read_text().splitlines()
    count = "Of 1 claims measured so far, 1 hold, 0 do not and 0 are inconclusive: [one page of them all]"
    assert count in README.read_text()
    before = {path: path.read_text() for path in (README, TABLE, PAGE)}
    summarise()
    assert {path: path.read_text() for path in before} == before


def test_the_former_rule_is_marked_and_what_has_no_verdict_counted(here: Path) -> None:
    older = made_up()
    del older["rule"]
    lay_down(here / "docs/claims/older", older)
    lay_down(here / "docs/claims/without", made_up(verdict="no verdict"))
    summarise()
    assert "**holds**<br>*former rule* |" in TABLE.read_text()
    assert "*former rule*: one look" in TABLE.read_text()
    assert "**no verdict** |" in TABLE.read_text()
    assert "0 are inconclusive and 1 have no verdict (1 of them by the former rule: one look" in README.read_text()


def test_a_result_is_no_markup_of_the_table(here: Path) -> None:
    lay_down(here / "docs/claims/one", made_up(claim="<b>[x](y) \\| &lt;\x1b[31m"))
    summarise()
    assert r"| [&lt;b>\[x\](y) \\\| &amp;lt;�\[31m](claims/one/report.md) |" in TABLE.read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"claim": f"One. {END}"},
        {"claim": "One.\nTwo."},
        {"claim": "One.\u2028Two."},
        {"claim": 1},
        {"seeds": 3},
        {"expectations": [1]},
        {"expectations": [HOLDS | {"expect": "`new` > old"}]},
        {"verdict": None},
        {"verdict": "perhaps"},
    ],
)
def test_a_result_that_is_more_than_a_row(change: dict[str, Any], here: Path) -> None:
    lay_down(here / "docs/claims/one", made_up())
    lay_down(here / "docs/claims/two", made_up(**change))
    before = TABLE.read_text()
    with pytest.raises(SummaryError, match="claims/two: not a result of compare"):
        summarise()
    assert TABLE.read_text() == README.read_text() == before
    assert not PAGE.exists()


def test_circumstances_of_another_kind(here: Path) -> None:
    lay_down(here / "docs/claims/one", made_up(), {**AROUND, "date": 3})
    with pytest.raises(SummaryError, match="claims/one: not a result of compare"):
        summarise()


def test_all_or_none_are_written(here: Path) -> None:
    lay_down(here / "docs/claims/one", made_up())
    # Where a folder lies, no file can.
    PAGE.mkdir()
    before = TABLE.read_text()
    with pytest.raises(OSError, match=r"index\.html"):
        summarise()
    assert TABLE.read_text() == README.read_text() == before


@pytest.mark.parametrize("path", [README, TABLE])
def test_a_page_without_marks_is_refused(path: Path, here: Path) -> None:
    for text in ("text", f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        path.write_text(text)
        with pytest.raises(SummaryError, match=f"{path}: what is found goes between the lines"):
            summarise()
    path.unlink()
    with pytest.raises(SummaryError, match=f"{path}: no such page"):
        summarise()


@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.stem)
def test_every_shipped_claim_can_be_planned(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    claim = read_claim(path)
    cells = plan(claim, claim.arms, claim.seeds.listed, tmp_path, [])
    assert len(cells) == len(claim.arms) * len(claim.seeds.listed)
    assert len(claim.seeds.listed) >= 3
