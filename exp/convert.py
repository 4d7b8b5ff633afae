"""`python -m exp convert IN OUT`: official checkpoints to our layout, and back."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.messages import first_line

if TYPE_CHECKING:
    from torch import Tensor


class ConvertError(ValueError):
    """A file that cannot be read, understood or written; the message says which and why."""


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: Arguments after `convert`.

    Returns:
        Exit code: 0, or 2 when the conversion was not possible.
    """
    parser = argparse.ArgumentParser(
        prog="python -m exp convert",
        allow_abbrev=False,
        description="Translate an official checkpoint to our layout (timm's names), or back.",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="file of torch, numpy or safetensors, or a pickle")
    parser.add_argument("target", type=Path, metavar="OUT", help=".safetensors, or .pth for {'model': weights}")
    parser.add_argument("--system", help="whose layout it is; recognised by the key names unless given")
    parser.add_argument("--to", choices=("ours", "official"), default="ours", help="layout of OUT (default: ours)")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights of a training checkpoint")
    parser.add_argument(
        "--architecture",
        type=Path,
        metavar="FILE",
        help="IN is a run of a searchable network, or with --config weights of one: write this architecture of it, "
        "and beside it the config that trains it further",
    )
    options, rest = parser.parse_known_args(argv)
    if rest and options.architecture is None:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")

    if options.architecture is not None:
        from exp.extraction import extract
        from exp.quiet import silence

        silence()
        return extract(str(options.source), options.target, options.architecture, rest)
    try:
        print(convert(options.source, options.target, options.system, options.to, options.ema))
    except ConvertError as error:
        print(f"exp convert: {options.source}: {error}", file=sys.stderr)
        return 2
    return 0


def convert(source: Path, target: Path, system: str | None = None, to: str = "ours", ema: bool = False) -> str:
    """Translate a checkpoint file.

    Args:
        source: Read with `exp.weight_files.read`.
        target: Written with `write`.
        system: Whose layout; None to recognise it by the key names.
        to: Layout of the target, `ours` or `official`.
        ema: Whether to take the averaged weights.

    Returns:
        What was done, in one line.

    Raises:
        ConvertError: The source cannot be understood or the target not be written.
    """
    from exp.official_files import translated
    from exp.weight_files import WeightFileError, read
    from models.official import LayoutError, layout_of

    try:
        found = translated(source, read(source), system, to, ema)
    except (WeightFileError, LayoutError) as error:
        raise ConvertError(str(error)) from error
    converted, system, pixels = found.state, found.system, found.pixels
    write(converted, target, None if pixels is None else pixels.plain())
    for note in found.notes:
        print(f"exp convert: {source}: {note}", file=sys.stderr)
    numbers = sum(tensor.numel() for tensor in converted.values())
    weights = f"{system} {'averaged ' if ema else ''}weights in {'our' if to == 'ours' else 'the official'} layout"
    look = "not stated" if pixels is None else pixels
    done = f"{target}: {weights}, {len(converted)} tensors, {numbers:,} numbers; pixels {look}"
    if to == "ours" and (options := layout_of(system).options):
        done += f"; network options {json.dumps(dict(options(converted)))}"
    return done


def write(state: dict[str, Tensor], path: Path, pixels: dict[str, Any] | None = None) -> None:
    """Write weights so that there is either the whole file or none.

    Args:
        state: Weights by name.
        path: `.safetensors` for bare weights, or `.pth`, `.pt` for `{"model": weights}`, the official wrapping.
        pixels: How the images look that the weights expect, in plain values: stated in the metadata, or beside `model`.

    Raises:
        ConvertError: Another suffix, or a folder that cannot be written to.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from callbacks.whole_files import whole

    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ConvertError(f"cannot write {path}: the name must end in .safetensors, .pth or .pt")
    contiguous = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    try:
        with whole(path) as partial:
            if path.suffix == ".safetensors":
                metadata = {"format": "pt"} | ({} if pixels is None else {"pixels": json.dumps(pixels)})
                save_file(contiguous, partial, metadata=metadata)
            else:
                torch.save({"model": contiguous} | ({} if pixels is None else {"pixels": pixels}), partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ConvertError(f"cannot write {path}: {first_line(error)}") from error
