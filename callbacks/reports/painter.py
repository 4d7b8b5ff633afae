"""What draws decisions of one kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from callbacks.reports.report import Report
from lightning_modules.task import Batch
from models.decisions import Decision


class Painter:
    """Collects decisions of one kind over an evaluation, and draws them.

    Args:
        report: whose evaluation it is.
    """

    def __init__(self, report: Report) -> None:
        self.report = report

    def keep(self, found: Mapping[str, Decision], batch: Batch, outputs: Any) -> None:
        """Takes what layers decided for a batch.

        Args:
            found: by the layer's name; at least one.
            batch: on the device.
            outputs: what the task's `count` returned.
        """

    def merge(self) -> None:
        """Puts the processes together; runs on each, whether or not it has kept anything."""

    def metrics(self) -> Mapping[str, float]:
        """What is logged, by name without the split."""
        return {}

    def draw(self) -> Mapping[str, Figure]:
        """Figures by the name of their file, without its ending."""
        return {}

    def write(self, folder: Path) -> None:
        """Writes files."""
