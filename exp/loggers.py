"""Where metrics go: a CSV table in the run directory."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsTable(Logger):
    """Writes one row per logged step to a CSV file, and survives being killed and resumed.

    A row is on the disk as soon as it is logged. A resumed run drops the rows at and after the step it resumes from,
    so that the table is the one of an uninterrupted run.

    Args:
        path: the CSV file; columns are `step`, `epoch` and every metric seen, in order of appearance.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns = ["step", "epoch"]
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.rows = [dict(row) for row in reader]
                self.columns = list(reader.fieldnames or self.columns)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """The run's version: its directory's name."""
        return self.path.parent.name

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsTable:
        """The table itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved config lies beside the table."""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the rows at and after a step."""
        kept = [row for row in self.rows if int(row["step"]) < step]
        if len(kept) < len(self.rows):
            self.rows = kept
            self._rewrite()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Writes metrics of one step; values logged at the same step and epoch share a row."""
        values = {name: f"{float(value):.7g}" for name, value in metrics.items() if name != "epoch"}
        epoch = metrics.get("epoch", "")
        key = {"step": str(step or 0), "epoch": str(int(epoch)) if epoch != "" else ""}
        new = [name for name in values if name not in self.columns]
        merge = bool(self.rows) and all(self.rows[-1][k] == v for k, v in key.items())
        if merge:
            self.rows[-1] |= values
        else:
            self.rows.append(key | values)
        self.columns += new
        if new or merge or not self.path.exists():
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(self.rows[-1])

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(partial, self.path)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """The steps and values of one metric."""
        found = [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name) not in (None, "")]
        return [step for step, _ in found], [value for _, value in found]
