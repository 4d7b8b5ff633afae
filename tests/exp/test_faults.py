"""A mistake is answered in one line; a fault too, and its traceback is kept."""

from __future__ import annotations

import re
from pathlib import Path

import albumentations
import pytest
import torch

from datamodules import DataError, Digits
from exp.faults import fault, mistake_in, refuses_arguments
from models.classifiers import timm_classifier
from models.mistakes import Mistake
from tests.library.runner import SMALL, run


def raised(action: object) -> Exception:
    try:
        action()  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def ours() -> None:
    """Stands for a bug in a constructor of ours."""
    exec(compile("int('three')", "ours.py", "exec"), {"__name__": "models.ours"})


@pytest.mark.parametrize(
    ("action", "mistake"),
    [
        (lambda: timm_classifier("convnext_atoo"), True),
        (lambda: Digits(batch_size=0), True),
        (lambda: torch.optim.SGD([torch.zeros(1)], lr=-1.0), True),
        (lambda: albumentations.HorizontalFlip(p="often"), True),
        (lambda: timm_classifier("convnext_atto", options={"dephts": [1]}), True),
        (ours, False),
        (lambda: {}["key"], False),
    ],
)
def test_what_a_class_was_given_is_told_from_a_bug(action: object, mistake: bool) -> None:
    assert refuses_arguments(raised(action)) is mistake


def test_a_mistake_is_found_behind_what_it_led_to() -> None:
    for mistake in (Mistake("mend it"), DataError("mend it")):
        error = raised(lambda mistake=mistake: (_ for _ in ()).throw(RuntimeError("in a loop")))
        error.__cause__ = ValueError("between")
        error.__cause__.__cause__ = mistake
        assert mistake_in(error) is mistake
    assert mistake_in(ValueError("of numpy")) is None


@pytest.mark.parametrize("there", [True, False])
def test_the_traceback_of_a_fault_is_kept(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told = fault(raised(ours), tmp_path if there else tmp_path / "gone")
    assert re.match(r"ValueError: invalid literal for int\(\).*'three' \(models.ours:1\); the traceback is in ", told)
    assert "\n" not in told
    kept = Path(told.rpartition(" ")[2])
    assert (kept == tmp_path / "errors.log") is there
    text = kept.read_text()
    assert "Traceback (most recent call last)" in text
    assert "in ours" in text


def test_a_fault_in_a_training_is_one_line_and_a_file(tmp_path: Path) -> None:
    def sabotage() -> None:
        from lightning_modules import Classification

        Classification.training_step = lambda *args: [][1]  # type: ignore[assignment,method-assign,return-value]

    ended = run("fit", [*SMALL, "--experiment=run"], tmp_path, sabotage)
    assert ended.code == 1
    line = ended.output.splitlines()[-1]
    assert line.startswith("exp: IndexError: list index out of range (tests.exp.test_faults:")
    assert line.endswith("; the traceback is in runs/run/0/errors.log")
    assert "Traceback" not in ended.output
    assert "IndexError" in (tmp_path / "runs/run/0/errors.log").read_text()
