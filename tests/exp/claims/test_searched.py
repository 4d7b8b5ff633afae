"""An arm whose network is what a search has found in another arm's supernet."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from exp.claims.searched import SearchFailed, found
from exp.claims.taken import Searched, TakenError, read_taken

CONFIG: dict[str, Any] = {"model": {"init_args": {"network": {"class_path": "mine.Net", "init_args": {"depth": 4}}}}}


def taken(key: str) -> Searched:
    (read,) = read_taken([{"arm": "supernet", "search": "--limit=params=15K --seed=3", "as": key}], ["supernet"])
    assert isinstance(read, Searched)
    return read


def test_the_network_and_its_weights_are_of_one_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def searched(command: list[str], **_: Any) -> Any:
        asked.append(command)
        folder = tmp_path / "search" / taken("weights").name
        folder.mkdir(parents=True)
        (folder / "best.yaml").write_text("depth: 2\n")
        (folder / "result.json").write_text("{}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", searched)
    network = json.loads(found(taken("model.init_args.network"), tmp_path, CONFIG))
    assert network == {
        "class_path": "models.supernet.chosen",
        "init_args": {"network": CONFIG["model"]["init_args"]["network"], "architecture": {"depth": 2}},
    }
    name = taken("weights").name
    assert found(taken("weights"), tmp_path, CONFIG) == str(tmp_path / "search" / name / "best.safetensors")
    assert [command[3:] for command in asked] == [
        ["search", str(tmp_path), "--limit=params=15K", "--seed=3", f"--name={name}", "--jobs=1"]
    ]


def test_a_search_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], 2, "", "exp: --limit parms: this network's costs are params\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(SearchFailed, match="--limit parms: this network's costs are params"):
        found(taken("weights"), tmp_path, CONFIG)


def test_a_search_names_the_key_that_takes_it() -> None:
    with pytest.raises(TakenError, match="'search' stands with 'as'"):
        read_taken({"arm": "supernet", "search": "--seed=3"}, ["supernet"])
