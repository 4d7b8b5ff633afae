"""`python -m exp report RUN...`: runs side by side on one HTML page, which needs no network and no other file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from exp.checkpoint_names import NoCheckpoint, find_run
from exp.run_list import runs_below

NAME = "report.html"
MOST = 60


def main(argv: list[str]) -> int:
    """Writes a report.

    Args:
        argv: arguments after `report`.

    Returns:
        The exit code: 2 if there is no such run.
    """
    options = _parser().parse_args(argv)
    try:
        paths = list(dict.fromkeys(path for word in options.run for path in _meant(word, options.runs)))
    except NoCheckpoint as error:
        print(f"exp: report {error}", file=sys.stderr)
        return 2
    if len(paths) > MOST:
        print(f"exp: report: {len(paths)} runs are more than a page has room for ({MOST}): name some", file=sys.stderr)
        return 2
    from exp.reporting.page import write_report

    target = options.output or (paths[0] if len(paths) == 1 else options.runs) / NAME
    write_report(paths, options.runs, target)
    print(f"{target} written, of {len(paths)} run{'' if len(paths) == 1 else 's'}")
    return 0


def report_on(paths: Sequence[Path], runs: Path, folder: Path) -> Path | None:
    """Writes the report that a command leaves at its end; what keeps it from being written is no reason to fail.

    Args:
        paths: directories of runs, of which the first that a page has room for are on it.
        runs: the folder of all runs.
        folder: where the page is to be.

    Returns:
        The page, if it could be written.
    """
    from exp.reporting.page import write_report

    target = folder / NAME
    try:
        write_report(paths[:MOST], runs, target)
    except OSError as error:
        print(f"exp: {target}: {error.strerror}; it is written by: exp report {folder}", file=sys.stderr)
        return None
    return target


def _meant(word: str, runs: Path) -> list[Path]:
    """The runs that a word means: a run, `NAME/last` for the newest of an experiment, or all of an experiment.

    Raises:
        NoCheckpoint: there is none.
    """
    for folder in (Path(word), runs / word):
        if found := [run.path for run in runs_below(folder)]:
            return found
    return [find_run(word, runs)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exp report",
        description="Write one HTML page of some runs: curves over each other, costs, accuracy over compute, what "
        "their configs differ in, pictures and environment. It needs no network and no other file.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", nargs="+", metavar="RUN", help="a run's directory, NAME/last, or an experiment for all of its runs"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=f"default: {NAME} in the run, or among the runs"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of all runs")
    return parser
