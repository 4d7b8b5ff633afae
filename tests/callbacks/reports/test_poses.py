from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from callbacks.reports import Place, reports_of
from callbacks.reports.poses import Poses
from datamodules import StickFigures
from datamodules.mpii import JOINT_NAMES, SKELETON
from drawing.poses import COLOURS, MIDDLE, Sighting, Skeleton, pose_sheet
from lightning_modules import Classification, PoseEstimation
from tests.library.reports import trainer_with

BONES = Skeleton(JOINT_NAMES, SKELETON)


class Corner(nn.Module):
    """Finds every joint in the cell (3, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.heat = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.zeros(len(images), 16, images.shape[2] // 4, images.shape[3] // 4)
        maps[..., 2, 3] = self.heat
        return maps


@pytest.fixture
def validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, StickFigures, PoseEstimation]:
    monkeypatch.setenv("EXP_CACHE", str(tmp_path / "cache"))
    report = Poses(people=3)
    report.place = Place(tmp_path / "plots", tmp_path)
    trainer = trainer_with(report, folder=tmp_path)
    data = StickFigures(num_train=1, num_val=5, batch_size=2)
    module = PoseEstimation(Corner(), flip_test="none")
    trainer.validate(module, data, verbose=False)
    return tmp_path, data, module


def test_evaluation_is_drawn_and_written(validated: tuple[Path, StickFigures, PoseEstimation]) -> None:
    folder, data, module = validated
    assert (folder / "plots/poses.png").stat().st_size > 10_000
    entries = json.loads((folder / "poses.json").read_text())
    assert [entry["image"] for entry in entries] == [f"val_{i:05d}.jpg" for i in range(5)]
    assert [entry["person"] for entry in entries] == list(range(5))
    people = data.people("val")
    for index, entry in enumerate(entries):
        left, top, right, _ = people.window(index)
        pixels = (right - left) / 16
        # Annotations count from 1.
        np.testing.assert_allclose(entry["joints"], [[left + 3 * pixels + 1, top + 2 * pixels + 1]] * 16, atol=0.006)
        assert entry["scores"] == [1.0] * 16
    assert module.findings is not None
    assert module.findings.metrics["pckh"] < 50


def test_other_tasks_have_no_such_report() -> None:
    assert Poses in reports_of(PoseEstimation)
    assert Poses not in reports_of(Classification)


def test_joints_without_annotation_are_left_out() -> None:
    image, truth = np.zeros((20, 30, 3), np.uint8), np.ones((16, 3))
    truth[0, 2] = 0
    found = np.ones((16, 3))
    found[:, 2] = 0.5
    figure = pose_sheet([Sighting(image, found, truth, (1, 2, 21, 22), "who")], BONES, "title")
    annotated, guessed = figure.axes
    assert (annotated.get_title(), guessed.get_title()) == ("who\nannotated", "who\nfound")
    assert annotated.get_xlim() == (0.5, 20.5)
    bones = len(SKELETON)
    alphas = [line.get_alpha() for line in annotated.lines]
    # The first bone ends in the joint, which is the first after the bones.
    assert [i for i, alpha in enumerate(alphas) if alpha == 0] == [0, bones]
    assert {line.get_alpha() for line in guessed.lines} == {0.625}
    only_found = pose_sheet([Sighting(image, found)], BONES)
    assert [axes.get_title() for axes in only_found.axes] == ["found"]


def test_sides_have_colours() -> None:
    assert BONES.colour(0) == COLOURS["right"]
    assert BONES.colour(13) == COLOURS["left"]
    assert BONES.colour(6, 7) == MIDDLE
    assert BONES.colour(12, 7) == COLOURS["right"]
