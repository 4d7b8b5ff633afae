"""`python -m exp runs`: the runs that there are, how each stands, how good it is and what it costs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from exp.run_list import STATES, ListedRun, runs_below

# What a list may be sorted by; what has none of it comes last.
ORDERS = ("when", "name", "state", "best", "test", "params", "macs", "time")
# Of these, less is looked for.
RISING = ("name", "state", "params", "macs", "time")
MOST = 40
COLUMNS = ["run", "state", "best", "test", "params", "MACs", "time", "when"]
NUMBERS = ("params", "MACs", "time")
# What a narrow terminal does without, in this order.
DISPENSABLE = [COLUMNS.index(name) for name in ("test", "when", "params", "time")]


def main(argv: list[str]) -> int:
    """Lists runs.

    Args:
        argv: arguments after `runs`.

    Returns:
        The exit code: 1 if there is no such run, 2 for a mistake in the command.
    """
    options = _parser().parse_args(argv)
    if unknown := set(options.state) - set(STATES):
        print(f"exp: --state {', '.join(sorted(unknown))}: choose from {', '.join(STATES)}", file=sys.stderr)
        return 2
    words = [word.lower() for word in options.words]
    found = [
        run
        for run in runs_below(options.runs)
        if all(word in run.text for word in words) and (not options.state or run.state in options.state)
    ]
    if not found:
        what = f" of {', '.join([*options.words, *options.state])}" if options.words or options.state else ""
        print(f"exp: there is no run{what} in {options.runs}", file=sys.stderr)
        return 1
    found = ordered(found, options.sort, options.reverse)
    shown = found if options.all else found[: options.last]
    if options.json:
        for run in shown:
            print(json.dumps(run.plain()))
        return 0
    show(shown, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    if len(shown) < len(found):
        print(f"{len(shown)} of {len(found)} runs; --all shows them all, and words narrow them down")
    return 0


def ordered(runs: Sequence[ListedRun], by: str, reverse: bool = False) -> list[ListedRun]:
    """Runs in an order, those first that one looks for: the newest, the best, the smallest.

    Args:
        runs: some runs.
        by: one of `ORDERS`.
        reverse: whether the order is turned round; what has no such value stays last.
    """
    keys = [run.key(by) for run in runs]
    falls = (by not in RISING) != reverse
    known = [run for run, key in zip(runs, keys, strict=True) if key is not None]
    known.sort(key=lambda run: (run.key(by), run.when), reverse=falls)
    return known + [run for run, key in zip(runs, keys, strict=True) if key is None]


def show(runs: Sequence[ListedRun], width: int | None = None) -> None:
    """Prints runs, one a line.

    Args:
        runs: some runs.
        width: letters that a line has room for, where columns have to go; None for as many as it takes.
    """
    table = [COLUMNS, *(run.cells() for run in runs)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    kept = list(range(len(COLUMNS)))
    for place in DISPENSABLE:
        if width is not None and sum(widths[i] + 2 for i in kept) - 2 > width:
            kept.remove(place)
    for row in table:
        cells = [row[i].rjust(widths[i]) if COLUMNS[i] in NUMBERS else row[i].ljust(widths[i]) for i in kept]
        print("  ".join(cells).rstrip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exp runs",
        description="List runs: how each stands, its best validation, parameters, multiply-adds that an image took, "
        "time and start. `exp report RUN...` sets some of them side by side.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="only those with all of these words in their name, task, network, data or metric",
    )
    parser.add_argument("--state", nargs="+", default=[], metavar="STATE", help=f"only these: {', '.join(STATES)}")
    parser.add_argument("--sort", choices=ORDERS, default="when", help="what comes first is the newest, best, smallest")
    parser.add_argument("--reverse", action="store_true", help="turn the order round")
    parser.add_argument("--last", type=int, default=MOST, metavar="N", help=f"at most so many (default: {MOST})")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of all runs")
    return parser
