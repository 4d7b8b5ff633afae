"""`python -m exp search RUN --limit params=6M`: the best architectures of a supernet within limits."""

from __future__ import annotations

import argparse

MUTATIONS = {"code": (0.2, 0.4), "paper": (0.4, 0.2)}


def main(argv: list[str]) -> int:
    """Runs `search`; the exit code is 0, 2 for a mistake in the command, 75 for a stop by signal, else 1.

    Args:
        argv: what follows the command's name; options that are not those of a search are `fit`'s.
    """
    options, rest = _parser().parse_known_args(argv)
    from exp.searching.command import run

    return run(options, rest, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exp search",
        usage="%(prog)s RUN [options], or %(prog)s CONFIG --weights SUPERNET [options] [overrides as for fit]",
        description="Search the architectures that a trained network can compute for the best ones within limits.\n"
        "Run again, it goes on where it was: no candidate is evaluated twice.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--strategy",
        choices=("evolution", "random", "front"),
        default="evolution",
        help="evolution: towards the best; front: towards the best for each cost; random: the baseline",
    )
    parser.add_argument(
        "--limit",
        default="",
        metavar="NAME=MOST,...",
        help="what an architecture may cost, such as params=6M,multiply_adds=1.4G,latency_ms=30 or params=5M..6M",
    )
    parser.add_argument("--over", metavar="COST", help="the cost of the front (default: the first limit's)")
    parser.add_argument("--generations", type=_count, default=20, help="after the first, random one (default: 20)")
    parser.add_argument("--population", type=_positive, default=50, help="candidates of a generation (default: 50)")
    parser.add_argument(
        "--parents", type=_positive, default=10, help="best candidates that have children (default: 10)"
    )
    parser.add_argument("--mutations", type=_count, help="children of one parent (default: half of a population)")
    parser.add_argument("--crossovers", type=_count, help="children of two parents (default: half of a population)")
    parser.add_argument(
        "--mutation",
        type=_probabilities,
        default=MUTATIONS["code"],
        metavar="code|paper|LAYER,WHOLE",
        help="probabilities that a layer's choice mutates and that the whole network's does: as in the code that "
        "evolution was published with, 0.2,0.4 (default), as in its paper, 0.4,0.2, or any others",
    )
    parser.add_argument("--seed", type=int, help="of the search (default: seed_everything)")
    parser.add_argument("--samples", type=_positive, help="judge on so many validation images (default: all)")
    parser.add_argument("--best", type=_positive, default=3, help="architectures to test and to write (default: 3)")
    parser.add_argument("--jobs", type=_positive, help="processes (default: one for each core, or for each GPU)")
    parser.add_argument(
        "--name", help="folder of the result in the run's `search` (default: strategy, limits and seed)"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _probabilities(text: str) -> tuple[float, float]:
    try:
        layer, whole = MUTATIONS.get(text) or map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not code, paper or two numbers, such as 0.2,0.4") from None
    return layer, whole
