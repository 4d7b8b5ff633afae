"""The page of runs: whole, by itself, safe from what a run says, and with what was asked of it on it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import exp.report
from exp.__main__ import main
from exp.report import NAME, report_on
from exp.reporting.charts import ticks
from exp.reporting.gather import POINTS, gather, thinned
from exp.reporting.page import page
from tests.library.pages import Reader

FACTS: dict[str, Any] = {
    "status": "finished",
    "created": "2026-11-30T10:00:00",
    "seconds": 75.0,
    "monitor": "val/top1",
    "mode": "max",
    "test": {"test/top1": 0.625},
    "surroundings": {"torch": "9.9.9", "machine": "2 CPU cores"},
}
HOSTILE = '<img src="http://x" onerror="alert(1)">'


def make(runs: Path, name: str, lr: float = 0.1, points: int = 3, cost: float = 1.0, **facts: Any) -> Path:
    path = runs / name
    (path / "plots").mkdir(parents=True)
    told = FACTS | {"best": 0.5, "cost": {"params": 1e6 * cost, "macs": 5e6 * cost}} | facts
    (path / "run.json").write_text(json.dumps(told))
    init_args = {"lr": lr, "weight_decay": 0.05}
    config = {"runs": "runs", "model": {"class_path": "Toy", "init_args": {"optimizer": {"init_args": init_args}}}}
    (path / "config.yaml").write_text(json.dumps(config))
    rows = [f"{i},0,{1 / (i + 1)},,\n{i},0,,{0.5 + i / 1e5},{0.25}\n" for i in range(points)]
    (path / "metrics.csv").write_text("step,epoch,train/loss,val/top1,val/loss\n" + "".join(rows))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path / "plots/confusion_matrix.png")
    return path


def shown(runs: Path, *names: str) -> Reader:
    return Reader(page([gather(runs / name, runs) for name in names]))


@pytest.mark.parametrize("count", [1, 2, 20])
def test_it_is_whole_and_asks_for_nothing(count: int, tmp_path: Path) -> None:
    names = [f"mine/{i}" for i in range(count)]
    for i, name in enumerate(names):
        make(tmp_path, name, lr=i, cost=i + 1)
    html = page([gather(tmp_path / name, tmp_path) for name in names])
    read = Reader(html)
    assert not re.search(r"https?:|@import|url\(", html.replace("http://www.w3.org/2000/svg", ""))
    assert all(source.startswith("data:image/png;base64,") for source in read.attributes("src"))
    assert len(list(read.attributes("src"))) == count
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in next(value for value in read.attributes("content") if "script" in value)
    assert {int(run) for run in read.attributes("data-run")} == set(range(count))
    # A page of one run has nothing to compare.
    assert ("Accuracy over compute" in read.text) == (count > 1)


def test_what_a_report_shows(tmp_path: Path) -> None:
    make(tmp_path, "mine/0", lr=0.1, best=0.5)
    make(tmp_path, "mine/1", lr=0.3, best=0.75, cost=8)
    read = shown(tmp_path, "mine/0", "mine/1")
    for told in (
        "mine/0 finished 0.5000 val/top1 0.6250 1.00 M 5.00 M 1 min 15 s 2026-11-30 10:00",
        "mine/1 finished 0.7500 val/top1 0.6250 8.00 M 40.00 M",
        "model.optimizer.lr 0.1 0.3",
        "3 values are the same in all",
        "torch 9.9.9 9.9.9",
        "confusion matrix",
    ):
        assert told.replace(" ", "") in read.text.replace(" ", ""), told
    curves = [attributes for tag, attributes in read.elements if tag == "path" and "data-x" in attributes]
    assert sorted(str(each["data-name"]) for each in curves) == sorted(
        f"mine/{i}{split}" for i in range(2) for split in ("", "", " train")
    )
    assert {str(each["data-y"]) for each in curves} == {"0.5 0.50001 0.50002", "0.25 0.25 0.25", "1 0.5 0.33333"}
    costly = [value for value in read.attributes("data-told") if value.startswith("mine/1")]
    assert costly == ["mine/1: 0.75 at 40.00 M", "mine/1: 0.75 at 8.00 M"]


def test_what_a_run_says_is_text(tmp_path: Path) -> None:
    path = make(tmp_path, "mine/0", monitor=HOSTILE, surroundings={HOSTILE: HOSTILE}, test={HOSTILE: 1})
    (path / "metrics.csv").write_text(f'step,epoch,"{HOSTILE.replace(chr(34), chr(34) * 2)}"\n0,0,1\n')
    read = shown(tmp_path, "mine/0")
    assert {value for value in read.attributes("src") if not value.startswith("data:")} == set()
    assert HOSTILE in read.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b"{torn"),
        ("run.json", b'{"cost": 3, "test": [1], "surroundings": "x", "best": "good", "created": 7, "seconds": true}'),
        ("config.yaml", b"a: [\xff"),
        ("config.yaml", b"- 1"),
        ("metrics.csv", b"step,epoch,val/top1\n0,0,nan\nx,0,1\n1,0\n2,0,0.5,\n\0\n3,0,1"),
        ("metrics.csv", b""),
    ],
)
def test_what_cannot_be_read_is_left_out(name: str, content: bytes, tmp_path: Path) -> None:
    (make(tmp_path, "mine/0") / name).write_bytes(content)
    assert "Pictures" in shown(tmp_path, "mine/0").text


def test_a_long_curve_keeps_its_extremes() -> None:
    values = [0.0] * 10_000
    values[1234], values[7777] = 5.0, -3.0
    steps, kept = thinned(range(10_000), values)
    assert len(steps) <= POINTS
    assert (kept[steps.index(1234)], kept[steps.index(7777)]) == (5.0, -3.0)
    assert (steps[0], steps[-1]) == (0, 9999)


@pytest.mark.parametrize(
    ("low", "high", "told"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.91, 0.97, [0.92, 0.94, 0.96]), (3, 3, [3])]
)
def test_ticks_are_round(low: float, high: float, told: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(told)


def test_runs_are_named_as_people_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        make(tmp_path / "runs", f"mine/{i}")
    assert main(["report", "mine"]) == 0
    assert Reader((tmp_path / "runs" / NAME).read_text()).text.startswith("3 runs")
    assert main(["report", "mine/1", "runs/mine/0", "-o", "two.html"]) == 0
    assert Reader((tmp_path / "two.html").read_text()).text.startswith("2 runs")
    assert main(["report", "mine/1"]) == 0
    assert "written, of 1 run\n" in capsys.readouterr().out
    assert (tmp_path / "runs/mine/1" / NAME).is_file()
    assert main(["report", "mime"]) == 2
    assert "did you mean 'mine'" in capsys.readouterr().err
    monkeypatch.setattr(exp.report, "MOST", 2)
    assert main(["report", "mine"]) == 2
    assert "3 runs are more than a page has room for (2)" in capsys.readouterr().err


def test_what_a_command_leaves_at_its_end_is_cheap_and_no_reason_to_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path, "mine/0", points=2000)
    started = time.process_time()
    assert report_on([path], tmp_path, path) == path / NAME
    assert time.process_time() - started < 0.2
    (tmp_path / "file").touch()
    assert report_on([path], tmp_path, tmp_path / "file") is None
    assert "it is written by: exp report" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_a_browser_and_its_script_runs(width: int, tmp_path: Path) -> None:
    names = [f"mine/{i}" for i in range(20)]
    html = page([gather(make(tmp_path, name, lr=i, cost=i + 1), tmp_path) for i, name in enumerate(names)])
    measured = "document.title = `${document.documentElement.scrollWidth} ${innerWidth}`;"
    digest = base64.b64encode(hashlib.sha256(measured.encode()).digest()).decode()
    html = html.replace("script-src ", f"script-src 'sha256-{digest}' ").replace(
        "</body>", f"<script>{measured}</script></body>"
    )
    (tmp_path / "page.html").write_text(html)
    command = ["chromium", "--headless=new", "--no-sandbox", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
    options = [f"--window-size={width},900", "--enable-logging=stderr", "--v=1"]
    ended = subprocess.run(
        [*command, *options, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r"<title>(\d+) (\d+)</title>", ended.stdout)
    assert found
    assert int(found[1]) <= int(found[2]), "nothing but tables and pictures scrolls sideways"
    assert "CONSOLE" not in ended.stderr
    # The script has made the buttons work.
    assert 'aria-pressed="true"' in ended.stdout
    assert "disabled" not in re.sub(r"<(script|style)>.*?</\1>", "", ended.stdout, flags=re.DOTALL)
