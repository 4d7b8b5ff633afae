"""What was logged over the steps of a training: loss and accuracy, and whatever followed a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from matplotlib.figure import Figure
from typing_extensions import override

from callbacks.reports.report import Report
from drawing.figures import Series, learning_curve


class LearningCurve(Report):
    """Draws loss and accuracy over the steps, and what else than the learning rate changed from step to step."""

    pictures: ClassVar = {
        "learning_curve.png": "loss and accuracy over the steps",
        "schedules.png": "what followed a schedule over the steps",
    }
    of_training = True
    splits = ()

    @override
    def draw(self) -> Mapping[str, Figure]:
        assert self.place is not None
        series, title = self.place.series, self.place.title
        monitored = [self.task.monitor.split("/", 1)[-1]] if self.task.monitor else []
        quantities = dict.fromkeys(["loss", *(self.task.curves or monitored)])
        panels = {quantity: {s: series(f"{s}/{quantity}") for s in ("train", "val")} for quantity in quantities}
        figures = {"learning_curve": learning_curve(panels, title)}
        scheduled: dict[str, dict[str, Series]] = {q: {"train": series(f"train/{q}")} for q in self.task.quantities}
        if len(scheduled) > 1:
            figures["schedules"] = learning_curve(scheduled, title)
        return figures
