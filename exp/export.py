"""`exp export RUN`: a network in a file that other programs run, compared with the network on real images."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: arguments after `export`; those that are not options here say what is exported, as for `validate`.

    Returns:
        Exit code.
    """
    from exp.exporting.formats import FORMATS

    parser = argparse.ArgumentParser(
        prog="exp export",
        usage="%(prog)s RUN [options]",
        description="Write a network into a file that other programs run, with its normalisation and class names.",
        allow_abbrev=False,
    )
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="of the file (default: onnx)")
    parser.add_argument("--output", "-o", type=Path, help="the file (default: export/model.* in the run's directory)")
    parser.add_argument(
        "--architecture",
        metavar="FILE,FILE",
        help="of a supernet: these architectures of it, each in a file, with plain weights and a table of latencies; "
        "--output is a folder then",
    )
    parser.add_argument("--int8", action="store_true", help="onnx: also a quantised file, model.int8.onnx")
    parser.add_argument("--images", type=int, default=8, help="of the validation split, to compare with (default: 8)")
    options, rest = parser.parse_known_args(argv)

    from exp.cli import Cli
    from exp.errors import exit_code
    from exp.exporting.sizes import export_sizes
    from exp.exporting.writing import export
    from exp.quiet import silence
    from exp.trained import trained

    silence()
    cli = Cli(rest, "export")
    with exit_code(cli) as outcome:
        made, images = trained(cli), max(1, options.images)
        if options.architecture:
            files = [Path(file) for file in options.architecture.split(",") if file]
            export_sizes(made, options.format, files, options.output, images, options.int8)
        else:
            export(made, options.format, options.output, images, options.int8)
    return outcome.code
