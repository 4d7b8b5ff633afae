"""Where metrics go: a CSV table in the run directory."""

from __future__ import annotations

import csv
import os
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.whole_files import whole


class MetricsTable(Logger):
    """Writes one row per logged step to a CSV file, and survives being killed and resumed.

    A row is on the disk as soon as it is logged; where the disk is full, it is tried again with the next one. A resumed
    run drops the rows at and after the step it resumes from, so that the table is the one of an uninterrupted run.
    Lines that cannot be read are left out, and `damage` says so.

    Args:
        path: the CSV file; columns are `step`, `epoch` and every metric seen, in order of appearance.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns = ["step", "epoch"]
        self.rows: list[dict[str, Any]] = []
        self.damage = ""
        # Why the file lags behind the rows.
        self.problem = ""
        if path.exists():
            self._read()

    def _read(self) -> None:
        header, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        columns = _fields(header)
        if columns is None or columns[:2] != self.columns or len(set(columns)) < len(columns):
            # Without their names, numbers say nothing.
            self.damage = f"{self.path} has no readable header: what it held is lost"
            return
        self.columns = columns
        bad = []
        for number, line in enumerate(lines, 2):
            fields = _fields(line)
            if fields == columns:
                continue
            if fields is None or len(fields) != len(columns) or not _is_row(fields):
                bad.append(number)
            else:
                self.rows.append(dict(zip(columns, fields, strict=True)))
        if bad:
            shown = ", ".join(map(str, bad[:6])) + (f" and {len(bad) - 6} more" if len(bad) > 6 else "")
            self.damage = f"{self.path}: what cannot be read is left out (line {shown})"

    # Lightning's callbacks put files that they choose the place of into `<save_dir>/<name>/<version>`.

    @property
    def save_dir(self) -> str:
        """The run's directory."""
        return str(self.path.parent)

    @property
    def name(self) -> str:
        """The folder in it for what callbacks of Lightning's write, apart from the run's own files."""
        return "callbacks"

    @property
    def version(self) -> str:
        """Empty: a run has a directory of its own."""
        return ""

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
        """Drops the rows at and after a step; a damaged file is kept as `metrics.damaged.csv`."""
        kept = [row for row in self.rows if int(row["step"]) < step]
        if self.damage:
            os.replace(self.path, self.path.with_name("metrics.damaged.csv"))
        if len(kept) < len(self.rows) or self.damage:
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
        if merge and self.rows[-1] == self.rows[-1] | values:
            return
        if merge:
            self.rows[-1] |= values
        else:
            self.rows.append(key | values)
        self.columns += new
        try:
            if new or merge or self.problem or not self.path.exists():
                self._rewrite()
            else:
                with self.path.open("a", newline="") as file:
                    csv.DictWriter(file, self.columns, restval="").writerow(self.rows[-1])
        except OSError as error:
            if not self.problem:
                print(
                    f"exp: {self.path}: {error.strerror}; training goes on, and rows are written later", file=sys.stderr
                )
            self.problem = f"{self.path} could not be written ({error.strerror}): its last rows are lost"

    @rank_zero_only
    def settle(self) -> None:
        """Writes what is missing: rows that could not be written, or the whole file if somebody has removed it."""
        if self.problem or (self.rows and not self.path.exists()):
            with suppress(OSError):
                self._rewrite()

    def _rewrite(self) -> None:
        with whole(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        self.problem = ""

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """The steps and values of one metric."""
        found = [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name) not in (None, "")]
        return [step for step, _ in found], [value for _, value in found]


def _fields(line: bytes) -> list[str] | None:
    """The fields of a line that was written whole; None of any other."""
    try:
        # A line without its end may lack digits, too.
        return next(csv.reader([line.decode()])) if line.endswith(b"\n") and b"\0" not in line else None
    except (UnicodeDecodeError, csv.Error, StopIteration):
        return None


def _is_row(fields: list[str]) -> bool:
    step, epoch, *values = fields
    try:
        [float(value) for value in values if value]
    except ValueError:
        return False
    return all(number.isascii() and number.isdigit() for number in (step, epoch or "0"))
