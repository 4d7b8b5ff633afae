"""`python -m exp compare`: runs the arms of a claim over several seeds, and says whether it holds."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

EXIT_CODES = """\
exit codes: 0 the claim holds, 3 it does not, 4 inconclusive, 5 no verdict (too few seeds or arms),
            1 a cell failed, 2 a mistake in the command or the claim file, 75 stopped by a signal
"""


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: arguments after `compare`; `--key=value` that is no option here changes the config of every cell.

    Returns:
        The exit code: 0 if the claim holds, 3 if it does not, 4 if the seeds leave it open, 5 for no verdict.
    """
    options, extra = _parser().parse_known_args(argv)
    wrong = [argument for argument in extra if not argument.startswith("--") or "=" not in argument]
    if wrong:
        print(f"exp: '{wrong[0]}' is no option of compare; a config key is changed by --key=value", file=sys.stderr)
        return 2
    if options.init is not None:
        return _init(options, extra)
    if options.summary:
        from exp.claims.committed import SummaryError
        from exp.claims.summary import summarise

        try:
            print(*summarise(), sep="\n")
        except SummaryError as error:
            print(f"exp: {error}", file=sys.stderr)
            return 2
        return 0
    if options.config is None:
        print(
            "exp: compare needs --config: a claim file, such as those in configs/claims/; --init writes one",
            file=sys.stderr,
        )
        return 2
    from exp.claims.runner import run

    return run(options, extra)


def _init(options: argparse.Namespace, extra: list[str]) -> int:
    """Writes a claim file, and says what comes next."""
    from exp.claims.claim_file import ClaimError
    from exp.claims.init import init

    try:
        if options.config is not None:
            raise ClaimError("--init writes a claim file, and --config runs one: give one of them")
        path = init(options.init, options.output, extra)
    except ClaimError as error:
        print(f"exp: {error}", file=sys.stderr)
        return 2
    print(f"{path} written; go through it, then: python -m exp compare --config {shlex.quote(str(path))} --dry-run")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exp compare",
        description="Runs the arms of a claim over several seeds as ordinary fits, and says whether it holds.\n"
        "Run again, it goes on where it was: finished cells are not run twice.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", "-c", type=Path, metavar="FILE", help="the claim file")
    parser.add_argument(
        "--init",
        nargs="+",
        type=Path,
        metavar="CONFIG",
        help="write a claim file, with comments, from two configs or more: what they differ in becomes the arms",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="with --init: the file to write (default: B_vs_A.yaml)"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms (and those that they start from)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="these seeds instead of the file's")
    parser.add_argument("--jobs", type=_positive, metavar="N", help="cells at a time (default: 1; with slurm: all)")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where cells run")
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="sbatch options, such as time=240 partition=gpu"
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="run two pilot seeds, which do not count, and say what the claim could settle and how long it would take",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the cells and what each changes; run nothing")
    parser.add_argument("--fresh", action="store_true", help="remove what has been run, and run it again")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of all runs")
    parser.add_argument(
        "--wandb",
        choices=("auto", "online", "offline", "disabled"),
        default="auto",
        help="as for fit; runs are grouped",
    )
    parser.add_argument(
        "--publish", action="store_true", help="copy the result to docs/claims/NAME and rewrite the summary"
    )
    parser.add_argument(
        "--summary",
        action="store_true",
        help="rewrite docs/claims.md, docs/claims/index.html and README's count from docs/claims/*, and say what has "
        "changed since each result; run nothing",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number
