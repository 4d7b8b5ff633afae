"""`python -m exp data pack CONFIG`: training images at the size that training needs, packed once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import albumentations as A
from rich.console import Console
from rich.progress import Progress

from datamodules import DataError, DataModule
from datamodules.packing import pack
from exp.data import DataAlone
from exp.quiet import silence
from exp.usage import UsageError

# Side of an image for each pixel of the side that it is cropped to: as 256 pixels are usual for crops of 224.
MARGIN = 8 / 7
QUALITY = 90


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: Arguments after `data pack`; those that are not options here are of the config, as for `fit`.

    Returns:
        Exit code: 1 if an image cannot be packed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m exp data pack",
        usage="%(prog)s CONFIG [overrides as for fit] [options]",
        description="Pack the images to train on at the size that training needs; `--data.packed=FOLDER` then trains "
        "on them. Run again, it goes on where it was stopped, and packs anew what has changed.",
        allow_abbrev=False,
    )
    parser.add_argument("-o", "--output", type=Path, help="folder of the pack (default: packed_EXPERIMENT)")
    parser.add_argument("--side", type=int, help="pixels of the shorter side (default: 8/7 of the crop's, 256 for 224)")
    parser.add_argument("--quality", type=int, default=QUALITY, help=f"of the JPEGs, 1 to 100 (default: {QUALITY})")
    options, config = parser.parse_known_args(argv)
    silence()
    cli = DataAlone(config, "data")
    data = cli.datamodule
    if not isinstance(data, DataModule):
        raise UsageError(f"data pack: {type(data).__name__} is no data module of exp's, and cannot be packed")
    side = options.side or _needed(data)
    if side < 8 or not 1 <= options.quality <= 100:
        raise UsageError(f"data pack: --side={side} is at least 8, and --quality={options.quality} from 1 to 100")
    folder = options.output or Path(f"packed_{cli.experiment}")
    try:
        for split in data.streams():
            source = data.source(split)
            with Progress(transient=True) as progress:
                task = progress.add_task(f"Packing the {split} images", total=len(source))
                for done in pack(source, folder, split, side, options.quality):
                    progress.update(task, completed=done)
    except DataError as error:
        print(f"exp: {error}", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in folder.glob("*.npy"))
    Console(emoji=False).print(
        f"{folder}: {', '.join(data.streams())}, shorter side of at most {side} pixels, {size / 1e6:,.1f} MB; train on "
        f"it with --data.packed={folder}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    return 0


def _needed(data: DataModule) -> int:
    """Pixels of the shorter side that the crop of a training leaves enough of."""
    first = data.train_transforms[0] if data.train_transforms else None
    if isinstance(first, A.RandomResizedCrop):
        return round(max(first.size) * MARGIN)
    raise UsageError(
        "data pack: the transforms of a training do not begin with a RandomResizedCrop, which would say what size is "
        "needed: give --side"
    )
