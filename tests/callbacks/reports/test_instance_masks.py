"""Where a decoder of ICD looks, drawn beside the boxes that it is asked about."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from callbacks.reports.instance_masks import InstanceMasks
from lightning_modules import Detection, Distillation
from models.distillation import InstanceConditional
from tests.library.dense_networks import images, small, targets


class Data:
    """Two images, of which the first has objects."""

    class_names = ("a", "b", "c", "d", "e")

    def example(self, samples: int) -> dict[str, Any]:
        return {"image": images(), "target": targets(), "index": torch.arange(2)}

    def picture(self, split: str, index: int, longest: int) -> np.ndarray:
        height, width = images()[index].shape[1:]
        return np.zeros((height // 2, width // 2, 3), np.uint8)


def test_each_object_has_its_mask_over_the_image(tmp_path: Path) -> None:
    term = InstanceConditional(5, ["encoder_maps"], num_heads=2)
    task, data = Detection(small(), distillation=Distillation(small(), {"icd": term})), Data()
    report = InstanceMasks()
    assert not report.applies(task)
    task.distillation.attach(task, data)
    assert report.applies(task)
    report.task, report.split = task, "val"
    report.trainer = SimpleNamespace(datamodule=data)
    report.start()
    report.keep(data.example(2), None)
    assert [index for index, _, _ in report.kept] == [0]
    figure = report.draw()["instance_masks"]
    assert [axes.get_title() for axes in figure.axes] == ["annotated", "e", "a"]
    for axes in figure.axes[1:]:
        picture, seen = axes.images
        assert tuple(picture.get_extent()) == (0, 40, 32, 0)
        # Four by five cells of 16 pixels, in a picture of half the size, whose weights add up to one.
        assert tuple(map(round, seen.get_extent())) == (0, 40, 32, 0)
        assert np.isclose(seen.get_array().sum(), 1, atol=1e-4)
