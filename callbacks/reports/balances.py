"""How layers weigh the branches that they are a mixture of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.painter import Painter
from callbacks.reports.report import Report
from callbacks.whole_files import write_table
from drawing.balances import balances
from lightning_modules.findings import gathered
from lightning_modules.task import Batch
from models.decisions import Decision


class Balances(Painter):
    """Draws and writes the coefficients that layers have learned, by layer and head.

    - `balances.png`: the coefficients over the layers, a dot for each head;
    - `balances.csv`: a row for each layer, head and branch.

    Logs them as `affinity0_dynamic`, `affinity0_static`, `affinity1_dynamic` ... by what the branches are called, means
    over the heads of a layer; layers are counted from the image on.

    Args:
        report: Whose evaluation it is.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self._found: dict[str, Decision] = {}
        # Coefficients [heads, branches] by layer.
        self._values: dict[str, Tensor] = {}

    @override
    def keep(self, found: Mapping[str, Decision], batch: Batch, outputs: Any) -> None:
        # What is learned is the same for all images, and on all processes.
        self._found = self._found or dict(found)

    @override
    def merge(self) -> None:
        values = {name: each.values[0].float().cpu() for name, each in self._found.items()}
        given = [each for each in gathered((values, self._found) if values else None) if each is not None]
        self._values, self._found = given[0] if given else ({}, {})

    @override
    def metrics(self) -> Mapping[str, float]:
        return {
            f"{decision.option}{i}_{name}": mean
            for i, (layer, decision) in enumerate(self._found.items())
            for name, mean in zip(decision.names, self._values[layer].mean(0).tolist(), strict=True)
        }

    @override
    def draw(self) -> Mapping[str, Figure]:
        if not self._found:
            return {}
        names = next(iter(self._found.values())).names
        values = {layer: value.numpy() for layer, value in self._values.items()}
        return {"balances": balances(values, names, f"{self.report.split}: what each layer mixes")}

    @override
    def write(self, folder: Path) -> None:
        rows = [["split", "layer", "head", "branch", "coefficient"]]
        for layer, decision in self._found.items():
            for head, coefficients in enumerate(self._values[layer].tolist()):
                for name, coefficient in zip(decision.names, coefficients, strict=True):
                    rows.append([self.report.split, layer, str(head), name, f"{coefficient:.6f}"])
        if self._found:
            write_table(folder / "balances.csv", rows)
