"""Commands as people say them."""

from __future__ import annotations

import os
import re
import shlex
import zipfile
from pathlib import Path

import pytest
import yaml

from exp.__main__ import main
from exp.cli import resolve
from exp.layers import with_base
from exp.recipes import FOLDER, find_recipe, recipes
from exp.usage import ConfigError
from exp.words import Unmeant, spelled_out
from tests.library.recipes import ROOT, TASKS


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for run in ("mine/0", "mine/1"):
        folder = tmp_path / "runs" / run / "checkpoints"
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "best.ckpt", "w"):
            pass
        (folder / "best.ckpt").write_bytes(b"PK\x03\x04")
    (tmp_path / "runs/mine/0/checkpoints/last.ckpt").touch()
    for run in ("runs/mine/0", "theirs/0"):
        (tmp_path / run).mkdir(parents=True, exist_ok=True)
        (tmp_path / run / "config.yaml").touch()
    os.utime(tmp_path / "runs/mine/0/checkpoints/last.ckpt")
    (tmp_path / "photos").mkdir()
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "own.yaml").write_text("experiment: own\n")
    return tmp_path


def at(name: str) -> str:
    return os.path.relpath(find_recipe(name))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("fit quickstart", "--config={quickstart}"),
        (
            "fit detection/solq_digits gpu --seed_everything 1",
            "--config={solq_digits} --config={gpu} --seed_everything 1",
        ),
        ("fit own.yaml", "--config=own.yaml"),
        ("fit --config quickstart --config=gpu", "--config {quickstart} --config={gpu}"),
        ("profile solq_digits --batch_size 2", "--config={solq_digits} --batch_size 2"),
        ("predict mine photos cat.jpg", "photos cat.jpg --ckpt_path=runs/mine/1/checkpoints/best.ckpt"),
        (
            "predict mine/best cat.jpg --device cpu",
            "cat.jpg --ckpt_path=runs/mine/1/checkpoints/best.ckpt --device cpu",
        ),
        ("predict runs/mine/0 cat.jpg", "cat.jpg --ckpt_path=runs/mine/0/checkpoints/best.ckpt"),
        ("predict efficientnet_lite0 photos", "photos --config={efficientnet_lite0}"),
        ("predict photos cat.jpg", "photos cat.jpg"),
        ("predict cat.jpg --ckpt_path mine", "cat.jpg --ckpt_path mine"),
        ("validate mine", "--ckpt_path=runs/mine/1/checkpoints/best.ckpt"),
        ("test own.yaml --weights x.pth", "--config=own.yaml --weights x.pth"),
        ("profile mine/0", "--ckpt_path=runs/mine/0/checkpoints/best.ckpt"),
        ("profile own.yaml", "--config=own.yaml"),
        ("fit --resume mine --trainer.x 9", "--config=runs/mine/0/config.yaml --resume mine --trainer.x 9"),
        ("fit own.yaml --resume mine", "--config=own.yaml --resume mine"),
        ("convert quickstart", "quickstart"),
        ("convert mine out.pth --to ours", "runs/mine/1/checkpoints/best.ckpt out.pth --to ours"),
    ],
)
def test_words_stand_for_options(said: str, meant: str) -> None:
    command, *argv = shlex.split(said)
    expected = [re.sub(r"\{(\w+)\}", lambda name: at(name[1]), word) for word in shlex.split(meant)]
    assert spelled_out(command, argv) == expected


def test_a_claim_is_found_among_the_claims() -> None:
    assert spelled_out("compare", ["early_exit"]) == [f"--config={os.path.relpath(FOLDER / 'claims/early_exit.yaml')}"]
    with pytest.raises(Unmeant, match="no claim 'quickstart'"):
        spelled_out("compare", ["quickstart"])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("fit solq_digit", "there is no config 'solq_digit', nor such a file; did you mean 'solq_digits'"),
        ("fit zzzzzz", "`exp configs` lists them"),
        ("fit --config zzzzzz", "there is no config 'zzzzzz'"),
        ("validate mime", "did you mean 'mine'"),
        ("profile mime", "there is no config 'mime'"),
        ("fit --resume mime", "--resume mime: no such file"),
        ("fit --resume theirs/0", "if you trust it, give its config, too: --config=theirs/0/config.yaml"),
        ("predict mime cat.jpg", "no such file, nor a run's directory or an experiment"),
    ],
)
def test_what_is_not_there_is_named(said: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(said)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_config_says_what_it_is_and_has_a_name_of_its_own() -> None:
    for claims in (True, False):
        names = [each.name for each in recipes() if (each.kind == "claims") == claims]
        assert len(names) == len(set(names))
    assert not [each.name for each in recipes() if not 15 < len(each.about) < 240]


def test_configs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "solq", "digits"]) == 0
    told = capsys.readouterr().out
    assert "solq_digits_large" in told
    assert "quickstart" not in told
    assert main(["configs", "zzzz"]) == 1
    assert "no config has zzzz in its name" in capsys.readouterr().err


@pytest.mark.parametrize("path", [path for path in TASKS if "builds_on:" in (ROOT / path).read_text()], ids=str)
def test_a_config_that_builds_on_another_says_so_in_its_command(path: Path) -> None:
    """What its first lines name before it is what it brings along."""
    text = (ROOT / path).read_text()
    commands = [shlex.split(line) for line in re.findall(r"^# +python -m exp fit (.*)$", text, re.MULTILINE)]
    files = [[word for word in each if word.endswith(".yaml")] for each in commands]
    brought = [os.path.relpath(word.removeprefix("--config="), ROOT) for word in with_base([f"--config={ROOT / path}"])]
    assert brought in files


def test_a_base_is_brought_along_by_the_first_config_alone(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed_everything: 3\nexperiment: base\n")
    (tmp_path / "own.yaml").write_text("builds_on: base.yaml\nexperiment: own\n")
    (tmp_path / "circle.yaml").write_text("builds_on: circle.yaml\n")
    (tmp_path / "lost.yaml").write_text("builds_on: gone.yaml\n")
    quickstart = f"--config={FOLDER / 'quickstart.yaml'}"
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"builds_on": str(FOLDER / "quickstart.yaml"), "threads": 2}))
    resolved = resolve(["--config=small.yaml"])
    assert (resolved["experiment"], resolved["threads"]) == ("quickstart", 2)
    assert "builds_on" not in resolved
    assert resolve([quickstart, "--config=own.yaml"])["seed_everything"] == 0
    for name, message in (("circle", "goes round in a circle"), ("lost", "there is no such file")):
        with pytest.raises(ConfigError, match=message):
            resolve([f"--config={name}.yaml"])
