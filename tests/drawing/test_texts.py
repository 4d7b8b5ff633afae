"""What people call files and classes, in pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from drawing.figures import confusion_matrix, contact_sheet, learning_curve, save
from drawing.texts import _tell_of_letters, plain_texts, short, spelled

IMAGE = np.zeros((8, 8, 3), np.uint8)


def test_names_are_no_formulas_and_missing_letters_are_said_once(tmp_path: Path) -> None:
    names = ["$x_{", r"\alpha$", "\U000e0041 \ue000", "a" * 300]
    _tell_of_letters.cache_clear()
    with pytest.warns(UserWarning, match="letters that no installed font has") as told:
        save(contact_sheet([IMAGE] * 4, names, "a $ and a $"), tmp_path / "sheet.png")
    assert len(told) == 1
    assert spelled("\U000e0041 \ue000 é") == "\\U000e0041 \\ue000 é"
    assert imread(tmp_path / "sheet.png").shape[:2] > (300, 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(confusion_matrix(np.eye(4, dtype=int), names), tmp_path / "matrix.png")


def test_long_lines_lose_their_middle() -> None:
    assert short("abcdefghij\nxy", 5) == "ab…ij\nxy"
    assert short("abcdefghij", 10) == "abcdefghij"


def test_a_logarithmic_axis_has_numbers_and_no_formulas() -> None:
    steps = list(range(50))
    figure = learning_curve({"loss": {"train": (steps, [2 * 0.8**step + 0.01 for step in steps])}})
    (axes,) = figure.axes
    with plain_texts(figure):
        labels = [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_yscale() == "log"
    assert {"0.01", "0.1", "1"} <= set(labels)
    assert not any("$" in label for label in labels)
