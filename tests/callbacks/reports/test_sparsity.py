"""Where masked kernels keep their weights, drawn where weights are masked and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from callbacks import MaskPruning, StepSeed
from callbacks.reports.sparsity import SparsityPatterns
from tests.library.reports import placed, trainer_with
from tests.library.toy_task import Numbers, Sums


def drawn(folder: Path, *callbacks: MaskPruning) -> SparsityPatterns:
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)]
    report = placed(SparsityPatterns(), folder)
    trainer = trainer_with(StepSeed(0), *callbacks, report, folder=folder, max_epochs=1)
    trainer.fit(Sums(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3))), Numbers())
    return report


def test_masked_weights_are_drawn_layer_by_layer(tmp_path: Path) -> None:
    report = drawn(tmp_path, MaskPruning(0.75))
    assert (tmp_path / "sparsity_patterns.png").stat().st_size > 1000
    panels = report.draw()["sparsity_patterns"].axes
    kept = [float(axes.get_title().split("\n")[1].removesuffix("% kept")) for axes in panels[:2]]
    masks = [report.task.network[place].weight != 0 for place in (1, 2)]
    assert kept == pytest.approx([100 * float(mask.float().mean()) for mask in masks], abs=0.06)
    torch.testing.assert_close(torch.from_numpy(panels[1].images[0].get_array().data), masks[1].float().mean((0, 1)))


@pytest.mark.parametrize("callbacks", [[], [MaskPruning(0.5, granularity="filter")]])
def test_others_have_no_such_picture(callbacks: list[MaskPruning], tmp_path: Path) -> None:
    drawn(tmp_path, *callbacks)
    assert not list(tmp_path.glob("*.png"))
