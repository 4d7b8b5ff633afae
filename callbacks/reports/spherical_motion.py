"""How far steps turned the scale-invariant weights of a training, as pictures and tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from typing_extensions import override

from callbacks.reports.report import Report
from callbacks.spherical_motion import SphericalMotion
from callbacks.whole_files import write_table, write_whole
from drawing.figures import Series
from drawing.spherical_motion import Turned, Turning, angular_updates, motion_of_layers, runs_beside, travelled_ratio
from lightning_modules.internals import trainer_of
from models.mistakes import Mistake
from models.spherical_motion import assumptions, equilibrium_angle, equilibrium_norm, time_constant

SeriesOf = Callable[[str], Series]
OWN = "this run"
QUANTITIES = ("angle", "prediction", "norm", "equilibrium_norm", "unit_gradient", "travelled")


class SphericalMotionCurve(Report):
    """Draws what `SphericalMotion` measured, next to theory, and tabulates every layer at the end.

    Args:
        beside: other runs to draw next to this one: the directory of each by a name.

    Raises:
        Mistake: when training begins, a directory without a table of metrics.
    """

    pictures: ClassVar = {
        "spherical_motion.png": "unit gradients, norms and angular updates of a few layers, next to theory",
        "angular_updates.png": "angular updates of all scale-invariant layers, next to theory",
        "spherical_beside.png": "norms, angular updates, loss and accuracy next to other runs'",
        "angle_ratio.png": "angles of several small steps by that of a large one",
    }
    files: ClassVar = {
        "spherical_motion.csv": "every scale-invariant layer, next to its equilibrium",
        "spherical_filters.csv": "every part of it that is invariant by itself",
        "spherical_motion.txt": "what was said of the schedule",
    }
    of_training = True
    splits = ()

    def __init__(self, beside: dict[str, str] | None = None) -> None:
        self.beside = beside or {}

    @override
    def applies(self, task: LightningModule) -> bool:
        return super().applies(task) and bool(self._motions(task))

    def _motions(self, task: LightningModule) -> list[SphericalMotion]:
        return [each for each in getattr(trainer_of(task), "callbacks", ()) if isinstance(each, SphericalMotion)]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, folder in self.beside.items():
            if not (Path(folder) / "metrics.csv").is_file():
                raise Mistake(
                    f"SphericalMotionCurve: beside: {name}: {folder} has no metrics.csv: name the directory of a run"
                )
        super().on_fit_start(trainer, pl_module)

    @override
    def draw(self) -> Mapping[str, Figure]:
        assert self.place is not None
        motion, title = self._motions(self.task)[0], self.place.title
        layers = [motion.layer(each) for each in motion.weights or []]
        own = self._turned(self.place.series, layers)
        if not own.layers:
            return {}
        runs = {OWN: own}
        for name, folder in self.beside.items():
            runs[name] = self._turned(_table(Path(folder) / "metrics.csv"), layers)
        figures = {
            "spherical_motion": motion_of_layers(own.layers, title),
            "angular_updates": angular_updates(runs, title),
        }
        if len(runs) > 1:
            figures["spherical_beside"] = runs_beside(runs, title)
        for other in list(runs.values())[1:]:
            small, large = (own, other) if motion.span > 1 else (other, own)
            if any(len(each.travelled[0]) for each in small.layers.values()):
                steps = [max(each.angle[0][-1] for each in run.layers.values()) for run in (small, large)]
                figures["angle_ratio"] = travelled_ratio(small, large, max(1, round(steps[0] / steps[1])), title)
        return figures

    def _turned(self, series: SeriesOf, layers: list[str]) -> Turned:
        turned = Turned()
        for layer in layers:
            found = {name: series(f"train/smd_{name}/{layer}") for name in QUANTITIES}
            if len(found["angle"][0]):
                turned.layers[layer] = Turning(**found)
        monitored = self.task.monitor.split("/", 1)[-1]
        for quantity in dict.fromkeys(("train/loss", f"val/{monitored}")):
            found_series = series(quantity)
            if len(found_series[0]):
                turned.curves[quantity] = found_series
        return turned

    @override
    def write(self, folder: Path) -> None:
        motion = self._motions(self.task)[0]
        write_whole(folder / "spherical_motion.txt", "".join(f"{text}\n" for text in motion.said))
        if motion.weights and motion.settings and motion.record.window:
            write_table(folder / "spherical_motion.csv", self._rows(motion))
            if motion.granularity == "filter":
                write_table(folder / "spherical_filters.csv", _filters(motion))

    def _rows(self, motion: SphericalMotion) -> Iterator[list[Any]]:
        flags = ("small_steps", "small_momentum", "bounded", "steady")
        yield [
            *("layer", "tensors", "unit", "parts", "loose", "theory", "angle", "prediction", "ratio", "norm"),
            *("equilibrium_norm", "unit_square_mean", "unit_square_variance", "unit_square_least"),
            *("in_equilibrium_from", "settles_in", *flags),
        ]
        assert motion.weights is not None
        for weight, setting in zip(motion.weights, motion.settings, strict=True):
            name, record = motion.layer(weight), motion.record
            ratio, angle, unit, _, _ = (record.mean(name, column) for column in range(5))
            units = [row[2] for row in record.values(name)]
            size = sum(self.task.get_parameter(each).numel() for each in weight.tensors)
            norm = math.sqrt(record.values(name)[-1][3])
            variance = sum((each - unit) ** 2 for each in units) / len(units)
            known = assumptions(setting, units) if setting.power == 4 and setting.balances and len(units) > 1 else {}
            expected = 3 * time_constant(setting)
            yield [
                *(name, " ".join(weight.tensors), weight.unit, weight.blocks, len(weight.loose), setting.theory),
                *map(_number, (angle, equilibrium_angle(setting), ratio, norm)),
                *map(_number, (equilibrium_norm(setting, unit, size), unit, variance, min(units))),
                *(record.reached.get(name, ""), round(expected) if math.isfinite(expected) else ""),
                *(str(known.get(flag, "")).lower() for flag in flags),
            ]


def _filters(motion: SphericalMotion) -> Iterator[list[Any]]:
    """Every part of every layer, as it was measured last."""
    yield ["layer", "part", "norm", "unit_gradient", "angle", "prediction"]
    if motion.last is None:
        return
    for weight, setting, blocks in zip(motion.weights or [], motion.settings, motion.last.blocks, strict=True):
        kept = [i for i in range(weight.blocks) if i not in set(weight.loose)]
        for part, (square, gradient, angle) in zip(kept, blocks.T.tolist(), strict=True):
            values = (math.sqrt(square), math.sqrt(square * gradient), angle, equilibrium_angle(setting))
            yield [motion.layer(weight), part, *map(_number, values)]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _table(path: Path) -> SeriesOf:
    """What another run logged, by name."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def series(name: str) -> Series:
        found = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        return [step for step, _ in found], [value for _, value in found]

    return series
