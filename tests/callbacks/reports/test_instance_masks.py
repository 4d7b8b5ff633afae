"""Where a decoder of ICD looks, drawn beside the boxes that it is asked about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from callbacks.reports.instance_masks import InstanceMasks
from lightning_modules import Detection, Distillation
from models.distillation import InstanceConditional
from models.distillation.instance_conditional.decoder import Looked
from models.distillation.instance_conditional.instances import Described
from models.distillation.instance_conditional.memory import Memory
from tests.library.dense_networks import images, small, targets


class Data:
    """Two images, of which the first has objects."""

    class_names = ("a", "b", "c", "d", "e")

    def example(self, samples: int) -> dict[str, Any]:
        return {"image": images(), "target": targets(), "index": torch.arange(2)}

    def picture(self, split: str, index: int, longest: int) -> np.ndarray:
        height, width = images()[index].shape[1:]
        return np.zeros((height // 2, width // 2, 3), np.uint8)


def drawn(term: InstanceConditional, report: InstanceMasks) -> Figure:
    """What a report draws of the first image."""
    task, data = Detection(small(), distillation=Distillation(small(), {"icd": term})), Data()
    assert not report.applies(task)
    assert task.distillation is not None
    task.distillation.attach(task, data)
    assert report.applies(task)
    report.task, report.split = task, "val"
    report.trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    report.start()
    report.keep(data.example(2), None)
    return report.draw()["instance_masks"]


def test_a_cell_that_is_looked_at_lies_over_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    term = InstanceConditional(5, ["encoder_maps"], num_heads=2)

    def look(memory: Memory, described: Described) -> list[Looked]:
        logits = torch.full((1, 2, 2, memory.cells.shape[1]), -100.0)
        # The second of four rows, the fourth of five columns.
        logits[..., 1 * 5 + 3] = 0
        assert memory.centres is not None
        torch.testing.assert_close(memory.centres[0, 8] * torch.tensor([80, 64]), torch.tensor([56.0, 24.0]))
        return [Looked(torch.empty(0), logits, torch.empty(0))]

    monkeypatch.setattr(term, "look", look)
    for axes in drawn(term, InstanceMasks()).axes[1:]:
        seen = axes.images[1]
        weights, (left, right, bottom, top) = seen.get_array(), seen.get_extent()
        assert np.unravel_index(weights.argmax(), weights.shape) == (1, 3)
        assert np.isclose(weights.max(), 1)
        # Pixels 48 to 64 and 16 to 32 of the image, in a picture of half the size.
        across, down = (right - left) / weights.shape[1], (bottom - top) / weights.shape[0]
        assert np.allclose([left + 3 * across, left + 4 * across], [24, 32])
        assert np.allclose([top + 1 * down, top + 2 * down], [8, 16])


def test_each_object_has_its_mask_over_the_image() -> None:
    report = InstanceMasks()
    figure = drawn(InstanceConditional(5, ["encoder_maps"], num_heads=2), report)
    assert [index for index, _, _ in report.kept] == [0]
    assert [axes.get_title() for axes in figure.axes] == ["annotated", "e", "a"]
    for axes in figure.axes[1:]:
        picture, seen = axes.images
        assert tuple(picture.get_extent()) == (0, 40, 32, 0)
        # Four by five cells of 16 pixels, in a picture of half the size, whose weights add up to one.
        assert tuple(map(round, seen.get_extent())) == (0, 40, 32, 0)
        assert np.isclose(seen.get_array().sum(), 1, atol=1e-4)
