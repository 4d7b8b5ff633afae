"""One progress display for all cells."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from exp.claims.cells import Cell, State
from exp.claims.claim_file import Claim
from exp.claims.remaining import Remaining
from exp.loggers import MetricsTable
from exp.run_state import read_state

# Finished cells of a large claim would push the running ones off the screen.
MOST_ROWS = 30
STYLES = {State.FINISHED: "green", State.FAILED: "red", State.BLOCKED: "red", State.RUNNING: "bold"}


@dataclass
class Progress:
    """Where a cell is.

    Args:
        step: optimiser steps done.
        total: optimiser steps of the whole run; 0 if not known yet.
        epochs: epochs of the whole run; None if training is measured in steps.
        metric: the last logged value of the claim's metric, or of the validation metric like it.
    """

    step: int = 0
    total: int = 0
    epochs: int | None = None
    metric: float = math.nan

    @property
    def share(self) -> float:
        """Share of the steps done."""
        return min(1.0, self.step / self.total) if self.total else 0.0


def progress(cell: Cell, metric: str) -> Progress:
    """Reads a cell's progress from its run directory."""
    found = Progress()
    try:
        state = read_state(cell.path)
        table = MetricsTable(cell.path / "metrics.csv")
        values = table.series(metric)[1]
        done = int(table.rows[-1]["step"]) + 1 if table.rows else 0
    except (ValueError, KeyError):
        # Caught in the middle of being written: the next look will see it whole.
        return found
    total, epochs = state.get("total_steps"), state.get("max_epochs")
    found.total = total if isinstance(total, int) and total > 0 else 0
    # Some callbacks log a row after the last step.
    found.step = min(done, found.total or done)
    found.epochs = epochs if isinstance(epochs, int) else None
    found.metric = values[-1] if values else math.nan
    return found


class Display:
    """A live table where somebody watches, a line for each event elsewhere.

    Args:
        claim: the claim.
        cells: those to run, and those that have been run.
        console: where to draw.
        jobs: how many cells run at a time; None: all of them.
        later: cells that may have to run when these are finished.
    """

    def __init__(
        self, claim: Claim, cells: list[Cell], console: Console, jobs: int | None = 1, later: Sequence[Cell] = ()
    ) -> None:
        self.later = later
        self._remaining = Remaining(claim.name, jobs)
        self.claim = claim
        self.cells = cells
        self.console = console
        self.metric = claim.curve_metric
        self.scale = claim.scale(claim.metric)
        self._begun: dict[Path, float] = {}
        self._first: dict[int, tuple[float, float]] = {}
        # Of finished cells, whose files need not be read again for each drawing.
        self._values: dict[int, float] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Display:
        if any(not cell.ended for cell in self.cells):
            self.say(self._foot())
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, message: str) -> None:
        """A line that stays."""
        self.console.print(message, highlight=False, soft_wrap=True)

    def started(self, cell: Cell) -> None:
        """A cell has been started."""
        self._begun[cell.path] = time.monotonic()
        if self._live is None:
            self.say(f"{self._count()} {escape(cell.name)}: started")

    def ended(self, cell: Cell) -> None:
        """A cell has ended."""
        seconds = cell.wall() or time.monotonic() - self._begun[cell.path]
        if cell.state is State.FINISHED:
            value = self._value(cell)
            result = escape(f"{self.claim.metric} {value:.4g}{self.claim.unit}")
        else:
            result = f"[red]{cell.state}: {escape(cell.reason)}[/]"
        if self._live is None or cell.state is not State.FINISHED:
            self.say(f"{self._count()} {escape(cell.name)}: {result} ({_clock(seconds)}){self._left()}")

    def refresh(self) -> None:
        """Draws the table again."""
        if self._live:
            self._live.update(self._table(), refresh=True)

    def _count(self) -> str:
        done = sum(cell.ended for cell in self.cells)
        return f"[{done}/{self._most()}]".replace("[", "\\[")

    def _table(self) -> RenderableType:
        table = Table("arm", "seed", "", "epoch", escape(self.metric), "left", box=None, pad_edge=False)
        shown = self.cells
        if len(shown) > MOST_ROWS:
            shown = [c for c in self.cells if c.state in (State.RUNNING, State.FAILED, State.BLOCKED)][:MOST_ROWS]
        for cell in shown:
            table.add_row(*self._row(cell))
        return Group(table, Text(self._foot(), style="dim"))

    def _foot(self) -> str:
        done = sum(cell.ended for cell in self.cells)
        return f"{done} of {self._most()} cells{self._left()}"

    def _most(self) -> str:
        return f"at most {len(self.cells) + len(self.later)}" if self.later else str(len(self.cells))

    def _left(self) -> str:
        now = time.monotonic()
        spent = {cell.path: now - self._begun[cell.path] for cell in self.cells if cell.state is State.RUNNING}
        return self._remaining.sentence([*self.cells, *self.later], spent)

    def _value(self, cell: Cell) -> float:
        if id(cell) not in self._values:
            value = cell.value(self.claim.metric, self.claim.at, self.claim.better)
            self._values[id(cell)] = value * self.scale
        return self._values[id(cell)]

    def _row(self, cell: Cell) -> list[RenderableType]:
        name = [escape(cell.arm.name), str(cell.seed)]
        if cell.state is State.FINISHED:
            value = self._value(cell)
            return [*name, Text("finished", style="green"), "", f"{value:.4g}{self.claim.unit}", ""]
        if cell.state is not State.RUNNING:
            return [*name, Text(cell.state, style=STYLES.get(cell.state, "dim")), "", "", ""]
        now = progress(cell, self.metric)
        epoch = f"{min(math.floor(now.share * now.epochs) + 1, now.epochs)}/{now.epochs}" if now.epochs else ""
        metric = "" if math.isnan(now.metric) else f"{now.metric * self.scale:.4g}{self.claim.unit}"
        bar = ProgressBar(total=1.0, completed=now.share, width=20)
        return [*name, bar, epoch or f"{now.step}/{now.total or '?'}", metric, self._cell_left(cell, now)]

    def _cell_left(self, cell: Cell, now: Progress) -> str:
        """The time that the rest will take, at the rate since the first step seen."""
        if not now.step or not now.total:
            return ""
        begun, first = self._first.setdefault(id(cell), (time.monotonic(), now.share))
        if now.share <= first:
            return ""
        return _clock((time.monotonic() - begun) * (1 - now.share) / (now.share - first))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
