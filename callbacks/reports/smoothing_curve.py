"""How teachers, and weights that are averaged by the unit, follow those that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from typing_extensions import override

from callbacks.averaging import AveragedWeights
from callbacks.reports.report import Report
from callbacks.smoothing import Smoothing
from drawing.figures import Series
from drawing.smoothing import smoothing_curve
from lightning_modules.internals import trainer_of


class SmoothingCurve(Report):
    """Draws distance and momentum over the steps, and of each layer what was renewed and how old it is."""

    pictures: ClassVar = {"smoothing.png": "how a teacher, or an average, follows the weights that are trained"}
    of_training = True
    splits = ()

    @override
    def applies(self, task: LightningModule) -> bool:
        return super().applies(task) and bool(self._drawn(task))

    def _drawn(self, task: LightningModule) -> list[Smoothing | AveragedWeights]:
        trainer = trainer_of(task)
        return [
            each
            for each in getattr(trainer, "callbacks", ())
            if isinstance(each, Smoothing) or (isinstance(each, AveragedWeights) and each.rule.keeps)
        ]

    @override
    def draw(self) -> Mapping[str, Figure]:
        assert self.place is not None
        series = self.place.series
        lines: dict[str, dict[str, Series]] = {"distance, as a share of the norm": {}, "momentum": {}}
        layers: dict[str, dict[str, Series]] = {"share of renewed units": {}, "mean age, in steps": {}}
        for callback in self._drawn(self.task):
            following = callback.following
            assert following is not None
            name = following.name
            lines["distance, as a share of the norm"][name] = series(f"train/{name}_distance")
            lines["momentum"][name] = series(f"train/{name}_momentum")
            if following.rule.keeps:
                lines["momentum"][f"{name}, effective"] = series(f"train/{name}_effective_momentum")
                for quantity, what in zip(layers, ("renewed", "age"), strict=True):
                    found = {layer: series(f"train/{name}_{what}/{layer}") for layer in following.smoother.layers}
                    layers[quantity] |= found
        return {"smoothing": smoothing_curve(lines, layers, self.place.title)}
