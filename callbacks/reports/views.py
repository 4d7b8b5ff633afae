"""What a training sees of an image, where it sees several views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from typing_extensions import override

from callbacks.reports.report import Report
from drawing.features import Captioned, image_rows
from drawing.figures import SMALL, evenly


class ViewSheet(Report):
    """Draws a few training images with the views of them that the first epoch has.

    Args:
        images: how many, evenly over the training images.
    """

    pictures: ClassVar = {"views.png": "training images, and the views of them that are trained on"}
    splits = ()
    of_training = True

    def __init__(self, images: int = 6) -> None:
        self.images = images

    @override
    def applies(self, task: LightningModule) -> bool:
        return super().applies(task) and bool(getattr(getattr(task, "data", None), "views", None))

    @override
    def draw(self) -> Mapping[str, Figure]:
        data: Any = self.data
        source, views = data.source("train"), data.pipeline_for("train")
        rows = []
        for index in evenly(range(len(source)), self.images):
            name = data.sample_name("train", index).rpartition("/")[2]
            made = views(source.load(index), 0, index)["image"]
            own = Captioned(data.picture("train", index, SMALL), name)
            sizes = [f"view {i + 1}: {view.shape[1]}x{view.shape[0]}" for i, view in enumerate(made)]
            rows.append([own, *(Captioned(view, said) for view, said in zip(made, sizes, strict=True))])
        return {"views": image_rows(rows, "training images and their views in the first epoch")}
