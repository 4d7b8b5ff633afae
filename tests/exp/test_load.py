"""`exp.load`: what `predict` writes, in Python."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import exp
from datamodules import DataError
from models.mistakes import Mistake
from tests.library.runner import run
from tests.library.short_run import RUN, fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a classifier of digits has been trained, with three images."""
    path = tmp_path_factory.mktemp("load")
    ended = fit(path)
    assert ended.code == 0, ended.output
    (path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "images" / f"{number}.png")
    return path


def test_importing_exp_is_cheap() -> None:
    code = "import sys, exp; assert callable(exp.load); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_says_what_predict_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    random = torch.random.get_rng_state()
    model = exp.load("run")
    assert torch.equal(random, torch.random.get_rng_state())
    entries = model("images")
    assert not run("predict", [str(RUN), "images"], folder).code
    with (RUN / "predict" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [
        {key: str(value) for key, value in entry.items() if key == "file" or "label" in key} for entry in entries
    ] == [{key: value for key, value in row.items() if key == "file" or "label" in key} for row in rows]
    assert [entry["probability_1"] for entry in entries] == pytest.approx(
        [float(row["probability_1"]) for row in rows], abs=1e-4
    )
    # One image in all its forms, alone and in a list.
    array = np.asarray(Image.open("images/1.png"))
    forms = [Path("images/1.png"), "images/1.png", array, Image.fromarray(array)]
    alone = [model(each) for each in forms]
    assert alone[0] == entries[1]
    assert [each | {"file": ""} for each in alone] == [each | {"file": ""} for each in model(forms)]
    assert model([]) == []
    # The parts.
    with torch.no_grad():
        probabilities = model.network(model.transform("images/1.png")[None]).softmax(1)[0]
    assert model.class_names[int(probabilities.argmax())] == entries[1]["label_1"]
    assert float(probabilities.max()) == pytest.approx(entries[1]["probability_1"], abs=1e-4)
    assert not model.network.training


def test_what_is_no_run_or_no_image_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(Mistake, match=r"^nothing: no such file"):
        exp.load("nothing")
    model = exp.load(RUN)
    with pytest.raises(DataError, match="does not exist"):
        model("nothing.png")
    with pytest.raises(Mistake, match="float64"):
        model(np.zeros((4, 4, 3)))
    assert capsys.readouterr().err == ""
