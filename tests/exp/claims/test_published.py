from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from exp.claims.claim_file import read_claim
from exp.claims.code_version import code_version
from exp.claims.committed import SummaryError, read_results
from exp.claims.published import changed_since, config_digest, freshness, outdated
from exp.cli import resolve
from tests.library.claim_results import lay_down
from tests.library.recipes import ROOT

CLAIM = """\
claim: One.
config: config.yaml
metric: val/top1
seeds: [0, 1, 2]
arms:
  slow: {model.optimizer.lr: 1.0e-6}
  fast: {model.optimizer.lr: 0.01}
expect: fast > slow
"""


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A result of the code as it is, as it reads back."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "configs/quickstart.yaml", "config.yaml")
    Path("claim.yaml").write_text(CLAIM)
    arms = {name: {"overrides": arm.overrides} for name, arm in read_claim(Path("claim.yaml")).arms.items()}
    code = code_version(resolve(["--config=config.yaml"]))
    result = {
        "file": "claim.yaml",
        "arms": arms,
        "code": code,
        "configs": {"config.yaml": config_digest(Path("config.yaml"))},
    }
    return json.loads(json.dumps(result))


def test_nothing_has_changed(result: dict[str, Any]) -> None:
    assert outdated(result) == []
    with Path("config.yaml").open("a") as file:
        file.write("\n# the end\n")
    assert outdated(result) == []


def test_what_has_changed_is_named(result: dict[str, Any]) -> None:
    Path("claim.yaml").write_text(CLAIM.replace("0.01", "0.02"))
    with Path("config.yaml").open("a") as file:
        file.write("\ntest: false\n")
    result["code"]["modules"]["exp.fit"] = "of an older file"
    result["code"]["modules"]["models.gone"] = "of a file that is no more"
    assert outdated(result) == ["the arm fast", "config.yaml", "the code of models.gone, exp.fit"]
    Path("claim.yaml").unlink()
    assert outdated(result)[0].startswith("claim.yaml: no such claim file")


def test_each_result_has_its_line(result: dict[str, Any]) -> None:
    for name, code in (("new", result["code"]), ("old", {"models": "0123"})):
        lay_down(Path(f"claims/{name}"), result | {"code": code})
    assert freshness(changed_since(read_results(Path("claims")))) == [
        "new: as published",
        "old: its code was recorded by whole packages, as was done once",
        "1 of 2 results would be measured again",
    ]


def test_a_terminal_obeys_no_result() -> None:
    assert freshness({"one": ["the code of \x1b[31mexp"]})[0] == "one: the code of \ufffd[31mexp"


@pytest.mark.parametrize(
    "change",
    [
        {"file": "/etc/hostname"},
        {"file": "../claim.yaml"},
        {"file": ["claim.yaml"]},
        {"configs": {"../config.yaml": "x"}},
        {"configs": ["config.yaml"]},
        {"arms": [1]},
        {"arms": {"slow": 1}},
        {"code": {"modules": ["exp.fit"], "libraries": {}}},
        {"code": None},
    ],
)
def test_a_strangers_result_is_refused(change: dict[str, Any], result: dict[str, Any], tmp_path: Path) -> None:
    lay_down(tmp_path / "all/one", result | change)
    with pytest.raises(SummaryError, match=r"all/one: not a result of compare .*--publish"):
        changed_since(read_results(tmp_path / "all"))


@pytest.mark.parametrize("name", ["results.json", "circumstances.json"])
@pytest.mark.parametrize("text", ["", "[", "[]", "3", "[" * 100_000, "\x00", '{"a": "\\ud800"}'], ids=range(7))
def test_what_is_no_result_is_refused(text: str, name: str, tmp_path: Path) -> None:
    lay_down(tmp_path / "one", {})
    (tmp_path / "one" / name).write_text(text)
    with pytest.raises(SummaryError, match=rf"one/{name}: not a result of compare"):
        read_results(tmp_path)


def test_a_config_that_is_none_is_another(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: !!python/object/apply:os.system [true]")
    assert config_digest(tmp_path / "config.yaml") == "not YAML"


def test_the_order_and_the_comments_of_a_config_say_nothing(tmp_path: Path) -> None:
    texts = ("a: 1\nb: {c: 2, d: 3}\n", "# why\nb:\n  d: 3\n  c: 2\na: 1\n", "a: 1\nb: {c: 2, d: 4}\n")
    digests = []
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.yaml").write_text(text)
        digests.append(config_digest(tmp_path / f"{i}.yaml"))
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 12
    assert config_digest(tmp_path / "none.yaml") == ""
