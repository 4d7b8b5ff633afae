"""A disk that takes no more: a training goes on without what it can do without, a command says which file it could not
write, and nothing is left half."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from callbacks import whole_files
from callbacks.reports.curves import LearningCurve
from exp.unwritable import unwritable
from tests.library.runner import SMALL, run

SHORT = [*SMALL, "--trainer.max_epochs=2", "--test=true", "--experiment=run"]


def full(*endings: str, code: int = errno.ENOSPC) -> Callable[[], None]:
    """A sabotage: there is no room for files of these endings."""

    def sabotage() -> None:
        flush = whole_files._flush

        def flush_if_there_is_room(path: Path) -> None:
            if path.suffix in endings:
                raise OSError(code, os.strerror(code))
            flush(path)

        whole_files._flush = flush_if_there_is_room

    return sabotage


def nothing_half_written(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "output.txt")]
    return all(path.stat().st_size > 0 and ".partial" not in path.name for path in files)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose pictures found no room, and one of whose reports cannot draw."""
    folder = tmp_path_factory.mktemp("trained")
    no_room = full(".png")

    def sabotage() -> None:
        no_room()
        LearningCurve.draw = lambda self: 1 / 0  # type: ignore[assignment, method-assign]

    ended = run("fit", SHORT, folder, sabotage)
    assert ended.code == 0, ended.output
    Image.fromarray(np.full((8, 8), 80, np.uint8)).save(folder / "0.png")
    return folder


def test_a_training_does_without_its_pictures(trained: Path) -> None:
    output, folder = (trained / "output.txt").read_text(), trained / "runs/run/0"
    assert "Traceback" not in output
    assert json.loads((folder / "run.json").read_text())["test"]["test/top1"] > 0
    summary = output[output.index("best val/top1") :]
    assert "LearningCurve could not be drawn: ZeroDivisionError: division by zero; see runs/run/0/errors.log" in summary
    assert "No space left on device: 'runs/run/0/plots/confusion_matrix.png'" in summary
    assert "errors.log" in summary
    # Once when it happens, once in the summary, however often it was tried.
    assert output.count("LearningCurve could not be drawn") == 2
    log = (folder / "errors.log").read_text()
    assert "Traceback" in log
    assert "division by zero" in log
    assert not list(folder.glob("plots/*"))
    assert nothing_half_written(trained)


@pytest.mark.parametrize(
    ("command", "argv", "endings", "file"),
    [
        ("validate", [], [".json"], "validate/metrics.json"),
        ("predict", ["0.png"], [".csv"], "predict/predictions.csv"),
        ("predict", ["0.png"], [".png"], "predict/contact_sheet.png"),
    ],
)
def test_a_command_names_what_it_could_not_write(
    command: str, argv: list[str], endings: list[str], file: str, trained: Path
) -> None:
    checkpoint = "--ckpt_path=runs/run/0/checkpoints/last.ckpt"
    ended = run(command, [checkpoint, *argv], trained, full(*endings))
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    message = f"exp: runs/run/0/{file}: no space left on device; free space there, and run the command again"
    assert message in ended.output.splitlines()
    assert nothing_half_written(trained / "runs/run/0" / command)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.EDQUOT, "x/y.csv: disk quota exceeded; free space there, and run the command again"),
        (errno.EROFS, "x/y.csv: read-only file system; allow writing there, or choose another folder"),
        (errno.ENOENT, None),
    ],
)
def test_what_is_said_of_a_file_that_cannot_be_written(code: int, told: str | None, tmp_path: Path) -> None:
    error = OSError(code, os.strerror(code), "x/y.csv")
    assert unwritable(error) == told
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = error
    assert unwritable(wrapped) == told
    assert unwritable(RuntimeError("of another kind")) is None
