"""How far a search is: a line for each generation and, on a terminal, a bar of candidates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Self

import rich.progress
from rich.console import Console

from models.supernet.evolution import Plan


class Progress:
    """Shows how far a search is.

    Args:
        plan: Of the search.
        metric: What it is by.
        sign: 1 where more of it is better, else -1.
        shown: Whether anything is; one process of several does.
    """

    def __init__(self, plan: Plan, metric: str, sign: int, shown: bool) -> None:
        self._plan, self._metric, self._best = plan, metric, max if sign > 0 else min
        self._console = Console(emoji=False, quiet=not shown)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("candidates"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not shown or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("candidates", total=plan.most)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def done(self, _: Any) -> None:
        """One more candidate has been evaluated, or was known."""
        self._bar.advance(self._task)

    def generation(self, number: int, values: Sequence[float], last: int) -> None:
        """Says what a generation has come to.

        Args:
            number: Of the generation, from 0.
            values: The metric of all candidates so far.
            last: How many of them are of this generation.
        """
        known, new = ([value for value in some if not math.isnan(value)] for some in (values, values[-last:]))
        said = f", mean {statistics.fmean(new):.4f}" if new else ""
        said += f", best {self._metric} so far {self._best(known):.4f}" if known else ""
        text = f"generation {number} of {self._plan.generations}: {last} candidates{said}"
        self._console.print(text, highlight=False, soft_wrap=True)
