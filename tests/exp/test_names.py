"""Files and folders as people have them, from the command line: names of all kinds, and what is no image."""

from __future__ import annotations

import csv
import os
import struct
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jsonargparse import Namespace
from PIL import Image
from rich.console import Console

import exp.__main__
from exp.cli import resolve
from exp.home import NoHomeError, argument_at_home, at_home
from exp.summary import result_lines
from exp.usage import ConfigError
from tests.library.runner import SMALL, run

PIXELS = np.zeros((16, 16, 3), np.uint8)
LYING = b"GIF89a" + struct.pack("<HH", 9400, 9400) + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def test_predict_on_a_folder_as_people_have_it(tmp_path: Path) -> None:
    assert run("fit", [*SMALL, "--experiment=run"], tmp_path).code == 0
    folder = tmp_path / "photos [old]"
    (folder / "x[").mkdir(parents=True)
    names = ["x[/old].png", "[bold]y.png", ":car:.png", "$x_{.png", "a" * 251 + ".png", "two\nlines.png"]
    for name in [*names, os.fsdecode(b"caf\xe9.png"), "._x.jpg"]:
        Image.fromarray(PIXELS).save(folder / name, "PNG")
    (folder / "link").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "lying.gif").write_bytes(LYING)
    checkpoint = "runs/run/0/checkpoints/last.ckpt"
    ended = run("predict", [f"--ckpt_path={checkpoint}", str(folder)], tmp_path)
    assert ended.code == 1
    assert f"lying.gif (index 5): its header claims 9400x9400 pixels, which its {len(LYING)} bytes" in ended.output
    assert "Traceback" not in ended.output
    ended = run("predict", [f"--ckpt_path={checkpoint}", "--data.on_bad_sample=skip", str(folder)], tmp_path)
    assert ended.code == 0, ended.output
    told = "".join(ended.output.split())
    for shown in ("x[/old].png", "[bold]y.png", ":car:.png", "$x_{.png", r"two\nlines.png", r"caf\xe9.png"):
        assert f"photos[old]/{shown}" in told
    assert "pipe.jpg:cannotberead:itisanamedpipe" in told
    with (tmp_path / "runs/run/0/predict/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    assert (tmp_path / "runs/run/0/predict/contact_sheet.png").stat().st_size > 1000


def test_names_of_metrics_are_no_markup() -> None:
    stream = StringIO()
    console = Console(file=stream, width=200, emoji=False)
    console.print("\n".join(result_lines({"test/[red]": 0.5, "test/[/x]_exit0": 1.0})), highlight=False)
    assert "test/[red] 0.5000" in stream.getvalue()
    assert "test/[/x] by exit  0 1.000" in stream.getvalue()


def test_home_directories_are_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = Namespace(root="~/d", nested=Namespace(paths=[Path("~/e"), "x~", 3, None]), weights={"teacher": "~/f"})
    spelled = at_home(config)
    assert spelled.nested.paths == [Path("/home/me/e"), "x~", 3, None]
    assert (spelled.root, spelled.weights) == ("/home/me/d", {"teacher": "/home/me/f"})
    for given, wanted in {
        "--runs=~/r": "--runs=/home/me/r",
        "~/images": "/home/me/images",
        "--x=~": "--x=~",
        "--x=~nobody-of-this-name": "--x=~nobody-of-this-name",
        "--data.root=./~/d": "--data.root=./~/d",
        "--weights.teacher=~root/w": f"--weights.teacher={os.path.expanduser('~root')}/w",
    }.items():
        assert argument_at_home(given) == wanted
    with pytest.raises(NoHomeError, match=r"~nobody-of-this-name/x: .*write \./~nobody-of-this-name/x"):
        argument_at_home("--runs=~nobody-of-this-name/x")


def test_home_directories_of_configs_and_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = tmp_path / "config.yaml"
    config.write_text("data: {class_path: ImageFolder, init_args: {root: ~/d}}\nruns: ~/runs\n")
    plain = resolve([*(each for each in SMALL if "--data" not in each), f"--config={config}"])
    assert (plain["data"]["init_args"]["root"], plain["runs"]) == ("/home/me/d", "/home/me/runs")
    config.write_text("runs: ~nobody-of-this-name/runs\n")
    with pytest.raises(ConfigError, match="nobody's home directory"):
        resolve([*SMALL, f"--config={config}"])
    seen: list[Any] = []
    command = SimpleNamespace(main=lambda rest: seen.append(rest) or 0)
    monkeypatch.setattr(exp.__main__.importlib, "import_module", lambda name: command)
    assert exp.__main__.main(["convert", "~/a.pth", "--out=~/b.ckpt"]) == 0
    assert seen == [["/home/me/a.pth", "--out=/home/me/b.ckpt"]]
    assert exp.__main__.main(["predict", "~nobody-of-this-name/x"]) == 2
    assert capsys.readouterr().err.startswith("exp: ~nobody-of-this-name/x: ")
