"""What is drawn, written and logged of the scales of a pyramid, against choices that are given."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from callbacks.reports.scales import Scales
from models.decisions import Decision
from models.necks import DyFPN

NAMES = ("1x1", "1x1 and block")
# Of three levels, closed and open.
COSTS = (0.0, 0.6, 0.0, 0.3, 0.0, 0.1)
CHOICES = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]])


def scales() -> Scales:
    data = SimpleNamespace(
        sample_name=lambda split, i: f"images/{i}.jpg",
        picture=lambda split, i, longest: np.full((8, 12, 3), 40 * i, np.uint8),
    )
    report: Any = SimpleNamespace(split="val", data=data)
    return Scales(report)


def test_choices_are_counted_drawn_and_written(tmp_path: Path) -> None:
    painter = scales()
    assert painter.metrics() == painter.draw() == {}
    # Batches come in any order.
    for rows in ([2, 3], [0, 1]):
        decision = Decision("levels", CHOICES[rows], "lateral", NAMES, COSTS)
        painter.keep({"neck": decision}, {"index": torch.tensor(rows)}, {})
    painter.merge()
    assert painter.metrics() == pytest.approx({"level0_share": 0.5, "level1_share": 0.25, "level2_share": 0.5})
    figure = painter.draw()["scales"]
    assert "42.5%" in figure.get_suptitle()
    bars, *others = figure.axes
    widths = [patch.get_width() for patch in bars.patches if isinstance(patch, Rectangle)]
    assert widths == pytest.approx([0.5, 0.75, 0.5, 0.5, 0.25, 0.5])
    # From the cheapest image to the dearest, each with its picture and its levels.
    captions = [axes.get_title() for axes in others if axes.get_title()]
    assert captions == ["3.jpg\n0%", "1.jpg\n10%", "0.jpg\n60%", "2.jpg\n100%"]
    taken = [patch.get_width() for patch in others[3].patches][3:]
    assert taken == pytest.approx([0, 0, (0.1 / 0.6) ** 0.5])
    painter.write(tmp_path)
    with (tmp_path / "scales.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["level"], row["lateral"]) for row in rows] == [(str(i), name) for i in range(3) for name in NAMES]
    assert [float(row["share_of_images"]) for row in rows] == [0.5, 0.5, 0.75, 0.25, 0.5, 0.5]
    assert [float(row["cost"]) for row in rows] == list(COSTS)


def test_branches_of_structure_a_have_their_costs() -> None:
    torch.manual_seed(0)
    neck = DyFPN([4, 4], 3, "pool", structure="A").eval()
    neck([torch.randn(2, 4, 8 >> i, 8 >> i) for i in range(2)])
    painter, decision = scales(), neck._decision
    painter.keep({"neck": decision}, {"index": torch.arange(2)}, {})
    painter.merge()
    # A branch of 1, 9 or 25 weights, over the dearest of both levels.
    expected = torch.tensor([1, 9, 9, 9, 25, 25, 25]) / torch.tensor([[31.25], [125]])
    torch.testing.assert_close(painter._costs().float(), expected)
    assert len(painter.draw()["scales"].axes) == 5
