"""The page of all claims: whole, by itself, and safe from what a result says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exp.claims.committed import Committed, SummaryError
from exp.claims.page import page
from exp.claims.published import config_digest
from exp.claims.setting import own, setting
from exp.markup import element
from tests.library.claim_results import AROUND, HOLDS, OPEN, arm, made_up
from tests.library.pages import Reader
from tests.library.recipes import ROOT


def written(*results: dict[str, Any], around: dict[str, Any] = AROUND, changed: list[str] | None = None) -> str:
    committed = [Committed(Path(f"docs/claims/claim{i}"), result, around) for i, result in enumerate(results)]
    return page(committed, {each.folder.name: changed or [] for each in committed})


def shown(*results: dict[str, Any], **options: Any) -> str:
    return Reader(written(*results, **options)).text


@pytest.mark.parametrize(
    "html", [(ROOT / "docs/claims/index.html").read_text(), written(made_up())], ids=["ours", "one"]
)
def test_it_is_whole_and_asks_for_nothing(html: str) -> None:
    read = Reader(html)
    ids = list(read.attributes("id"))
    assert len(ids) == len(set(ids))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert list(read.attributes("src")) == []
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    assert {tag for tag, _ in read.elements} <= {
        *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "script"),
        *("h1", "h2", "p", "a", "b", "div", "span", "code", "ul", "li", "dl", "dt", "dd", "details", "summary"),
        *("table", "thead", "tbody", "tr", "th", "td", "button", "label", "input", "select", "option", "article"),
        *("svg", "g", "rect", "line", "circle", "path", "text"),
    }


def test_its_policy_allows_its_own_script_alone() -> None:
    html = written(made_up())
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert policy in Reader(html).attributes("content")


def test_links_lead_to_files() -> None:
    links = [
        link for link in Reader((ROOT / "docs/claims/index.html").read_text()).attributes("href") if link != "data:,"
    ]
    assert len(links) == 1 + 3 * len(list((ROOT / "docs/claims").glob("*/results.json")))
    for link in links:
        assert (ROOT / "docs/claims" / link).is_file()


def test_what_a_claim_shows() -> None:
    arms = {
        "old": arm(80.0),
        "new": arm(83.0, macs=2e6, diverged=[1], overrides={"threads": 1, "model.init_args.lr": 2}),
    }
    text = shown(made_up(arms=arms, expectations=[HOLDS, OPEN], notes="Of digits."), changed=["the code of exp.fit"])
    for part in (
        "New beats old.",
        "Holds · a paper, table 3",
        "2 seeds in 2 looks · 2.00 M to 4.00 M multiply-adds · 42 min, 2 cells at a time · 2026-01-02, abc1234",
        "· code changed",
        "+3.0 [+1.0, +5.0] points; expected: above 0",
        "settled with 8 seeds",
        "without seed 3 it would be inconclusive",
        "+3.0 [+1.0, +5.0] points; expected: above +2",
        "these seeds would have settled 1.3 points beyond the boundary; what was seen asks for about 24 seeds",
        "0, 1; looked at after 1, 2",
        "2026-01-02, commit abc1234, 2 CPU cores",
        "changed since: the code of exp.fit",
        "Of digits.",
        "diverged seeds",
        "model.lr = 2",
        "threads = 1",
        "2.00 k",
    ):
        assert part.replace(" ", "") in text.replace(" ", ""), part
    assert "former rule" not in text


def test_the_count_stands_at_the_top() -> None:
    results = [made_up(verdict=v) for v in ("holds", "inconclusive", "inconclusive", "no verdict")]
    read = Reader(written(*results))
    buttons = [attributes["data-verdict"] for tag, attributes in read.elements if tag == "button"]
    assert buttons == ["holds", "does not hold", "inconclusive", "no verdict"]
    assert "1holds0does not hold2inconclusive1no verdict" in read.text
    articles = [a["data-verdict"] for tag, a in read.elements if tag == "article"]
    assert articles == ["holds", "inconclusive", "inconclusive", "no verdict"]


def test_a_result_of_the_former_rule_is_marked() -> None:
    older = made_up(expectations=[{k: HOLDS[k] for k in ("expect", "verdict", "reason", "difference")}])
    for key in ("rule", "looks"):
        del older[key]
    for each in older["arms"].values():
        del each["diverged"]
    around = {key: value for key, value in AROUND.items() if key not in ("minutes", "jobs")}
    text = shown(older, around=around)
    assert "former rule: one look" in text
    assert "Holds former rule · a paper" in text
    assert "2 seeds · 4.00 M multiply-adds · 2 min of training steps · 2026-01-02, abc1234 · code as published" in text


@pytest.mark.parametrize("needed", [{"difference": 1.3, "seeds": None}])
def test_more_seeds_than_anybody_has(needed: dict[str, Any]) -> None:
    assert "what was seen asks for more than 1,000" in shown(made_up(expectations=[OPEN | {"would_settle": needed}]))


ATTACK = "</p><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x' &amp; \x00 \x1b[31m"


def texts(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a result a text is that is free."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from texts(inner, (*place, key))
    if isinstance(value, str) and place[-1] not in ("verdict", "expect", "at", "metric", "unit", "reference", "rule"):
        yield place


def test_a_result_is_a_strangers_text() -> None:
    result = made_up(
        notes="n",
        overrides=["--a=b"],
        failed=[{"cell": "new seed 1", "reason": "r"}],
        expectations=[HOLDS | {"reason": "r"}],
    )
    tried = [*texts(result), *(("around", *place) for place in texts(AROUND))]
    assert len(tried) > 10
    plain = [tag for tag, _ in Reader(written(result)).elements]
    for place in tried:
        changed, around = json.loads(json.dumps([result, AROUND]))
        inner = around if place[0] == "around" else changed
        *way, last = place[1:] if place[0] == "around" else place
        for key in way:
            inner = inner[key]
        inner[last] = ATTACK
        html = written(changed, around=around, changed=[ATTACK])
        read = Reader(html)
        assert [tag for tag, _ in read.elements if tag != "li"] == [tag for tag in plain if tag != "li"], place
        assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
        assert "<script>alert(1)</script>" in read.text
        assert "\x00" not in html
        assert "\x1b" not in html


@pytest.mark.parametrize(
    "change",
    [
        {"claim": 1},
        {"seeds": 3},
        {"seeds": ["<b>"]},
        {"looks": ["<b>"]},
        {"expectations": [1]},
        {"expectations": [HOLDS | {"expect": "new ="}]},
        {"expectations": [HOLDS | {"expect": "(" * 5000}]},
        {"expectations": [HOLDS | {"verdict": "perhaps"}]},
        {"expectations": [HOLDS | {"remarks": [1]}]},
        {"expectations": [OPEN | {"would_settle": {"seeds": "<b>", "difference": 1}}]},
        {"expectations": [HOLDS | {"difference": {"mean": 1e308, "interval": [-1e308, 1e308]}}]},
        {"verdict": None},
        {"expectations": [OPEN | {"would_settle": {"seeds": 3, "difference": "<b>"}}]},
        {"arms": {}},
        {"arms": {"old": arm(80.0), "new": {}}},
        {"configs": {"../config.yaml": "x"}},
    ],
)
def test_what_is_no_result_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SummaryError, match="docs/claims/claim0: not a result of compare"):
        written(made_up(**change))


@pytest.mark.parametrize("minutes", ["3", float("nan"), -float("inf")])
def test_circumstances_of_another_kind_are_refused(minutes: Any) -> None:
    with pytest.raises(SummaryError, match="is no number"):
        written(made_up(), around=AROUND | {"minutes": minutes})


def test_setting_is_of_the_configs_that_were_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = Path("first.yaml"), Path("second.yaml")
    first.write_text("trainer: {max_epochs: 7}\ndata: {class_path: datamodules.CIFAR10, init_args: {root: a/photos}}\n")
    second.write_text("data: Digits\n")
    result = made_up(configs={str(path): config_digest(path) for path in (first, second)})
    assert setting(result)[:3] == [
        ("Config", "first.yaml, second.yaml"), ("Data", "Digits (photos)"), ("Epochs", "7")
    ]  # fmt: skip
    second.write_text("data: Other\n")
    assert dict(setting(result))["Data"] == "CIFAR10 (photos)"
    first.unlink()
    assert not {"Data", "Epochs"} & dict(setting(result)).keys()
    epochs = {"trainer.max_epochs": 3}
    result["arms"]["new"]["overrides"] = {"threads": 1} | epochs
    assert "Epochs" not in dict(setting(result))
    assert own(result, "new") == "trainer.max_epochs = 3"
    assert own(result, "old") == "changes nothing"
    result["arms"]["old"]["overrides"] = {"threads": 1} | epochs
    assert dict(setting(result))["Epochs"] == "3"
    result["overrides"] = ["--trainer.max_epochs=1"]
    assert dict(setting(result))["Epochs"] == "1"
    assert dict(setting(result))["Changed"] == "--trainer.max_epochs=1"
    result["arms"]["new"]["after"] = "old"
    assert own(result, "new") == "starts from old"


def test_elements_escape_what_they_hold() -> None:
    assert element("p", "a < b", element("b", "&"), class_="x", data_y='"', hidden=True, open=False, x=1.25) == (
        '<p class="x" data-y="&quot;" hidden x="1.2">a &lt; b<b>&amp;</b></p>'
    )
    with pytest.raises(ValueError, match="3 is no text"):
        element("p", 3)  # type: ignore[arg-type]
