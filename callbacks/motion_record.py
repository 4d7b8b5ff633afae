"""What was measured of the weights that norms follow: values of a step, and means over the last measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.spherical_motion import Setting, effective_learning_rate, equilibrium_norm
from models.spherical_motion.schedule import NEAR

# Measurements that means are taken of.
WINDOW = 20


@dataclass(frozen=True)
class Step:
    """What a step did to a weight.

    Args:
        layer: what the weight is called.
        setting: the optimiser's at the step.
        size: elements of the weight.
        prediction: of the angle, in radians; not a number where there is none.
        square, gradient, product: |w|^2, |g|^2 and <w, g> before the step.
        buffer, cross: |v|^2 and <v, g>, v the momentum before the step.
        angle: of the step, in radians.
        travelled: of as many steps as the callback spans.
    """

    layer: str
    setting: Setting
    size: int
    prediction: float
    square: float
    gradient: float
    product: float
    buffer: float
    cross: float
    angle: float
    travelled: float

    @property
    def unit_square(self) -> float:
        """The squared unit gradient, with momentum h of theorem 2 of arXiv 2006.08419."""
        momentum = self.setting.momentum if self.setting.theory == "sgdm" else 0.0
        return (self.gradient + 2 * momentum * self.cross) * self.square


class MotionRecord:
    """The last measurements of all weights, and the steps at which layers were first seen in equilibrium."""

    def __init__(self) -> None:
        # Of each measurement, by layer: angle by prediction, angle, squared unit gradient, squared norm, travelled.
        self.window: list[dict[str, list[float]]] = []
        self.reached: dict[str, int] = {}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"window": self.window, "reached": self.reached}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores it."""
        self.window, self.reached = [*state["window"]], dict(state["reached"])

    def values(self, layer: str) -> list[list[float]]:
        """The last measurements of a layer, oldest first: ratio, angle, unit square, square, travelled."""
        return [row[layer] for row in self.window]

    def mean(self, layer: str, column: int) -> float:
        """The mean of one of `values` of a layer."""
        values = [row[column] for row in self.values(layer)]
        return sum(values) / len(values)

    def add(self, step: int, steps: Sequence[Step], balances: bool, spans: bool) -> dict[str, float]:
        """Takes a measurement.

        Args:
            step: optimiser steps that are done.
            steps: of each weight.
            balances: whether weights are left to come to an equilibrium.
            spans: whether what is travelled is more than a step.

        Returns:
            What is to be logged, by name and layer.
        """
        rows = {s.layer: [s.angle / s.prediction, s.angle, s.unit_square, s.square, s.travelled] for s in steps}
        self.window = [*self.window[1 - WINDOW :], rows]
        logged: dict[str, float] = {}
        for each in steps:
            rest = equilibrium_norm(each.setting, self.mean(each.layer, 2), each.size) if balances else math.nan
            norm = math.sqrt(each.square)
            unit = norm * math.sqrt(each.gradient)
            values = {
                "angle": each.angle,
                "prediction": each.prediction,
                "norm": norm,
                "equilibrium_norm": rest,
                "unit_gradient": unit,
                "cos": each.product / unit if unit else math.nan,
                "effective_lr": effective_learning_rate(each.setting, norm) if norm else math.nan,
                "travelled": each.travelled if spans else math.nan,
                "momentum_norm": math.sqrt(each.buffer) if each.setting.theory == "sgdm" else math.nan,
            }
            logged |= {f"{name}/{each.layer}": value for name, value in values.items() if not math.isnan(value)}
            self._note_equilibrium(step, each, rest)
        for name, column in {"ratio": 0, "angle": 1, "travelled": 4}.items():
            means = [mean for each in steps if not math.isnan(mean := self.mean(each.layer, column))]
            if means:
                logged[name] = sum(means) / len(means)
        return logged

    def _note_equilibrium(self, step: int, each: Step, rest: float) -> None:
        """Notes when angle and, of SGD, norm have been those of equilibrium for as long as the window."""
        if math.isnan(rest) or each.layer in self.reached or len(self.window) < WINDOW:
            return
        squares = [row[3] for row in self.values(each.layer)]
        settled = each.setting.power != 4 or all(abs(square / rest**2 - 1) < NEAR for square in squares)
        if settled and abs(self.mean(each.layer, 0) - 1) < NEAR:
            self.reached[each.layer] = step
