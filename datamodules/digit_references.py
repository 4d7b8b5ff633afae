"""Expressions that mean one digit of a scene, written once to disk as RefCOCO is and read like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typing_extensions import override

from datamodules.cache import write_once
from datamodules.canvases import INK, CanvasPainter
from datamodules.digit_questions import APART, CELL, GRID, Scene, paint, scene
from datamodules.errors import OptionError
from datamodules.referring import Referring
from datamodules.scenes import CANVAS_SEED, TRAIN_DIGITS, VAL_DIGITS
from datamodules.splits import Source
from datamodules.transforms.pipeline import Transform

LAYOUT = "digit-references-1"


class DigitReferences(Referring):
    """Scenes of six different digits in a grid of 8x8 cells, and expressions that mean one of them.

    The scenes are those of ``DigitQuestions``. Of each, three expressions mean a digit: ``the 3``, ``the digit that
    touches the 3`` and ``the digit 3 cells from the 3``. A box is that of the digit's ink, not of its cell.

    Batch: as ``Referring``, with images of 64x64 pixels. The data set is written to the cache folder on first use.

    Args:
        batch_size: Expressions of one batch over all processes.
        num_train: Training scenes, of the first 1297 digits.
        num_val: Validation scenes, of the other 500.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. By default there are no transforms.

    Raises:
        OptionError: If there are no scenes.
    """

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    typical_size = (GRID * CELL, GRID * CELL)

    def __init__(
        self, batch_size: int = 64, num_train: int = 6000, num_val: int = 300, num_workers: int = 0, **options: Any
    ) -> None:
        if min(num_train, num_val) < 1:
            raise OptionError(f"num_train={num_train} and num_val={num_val} must be at least 1.")
        # What ``write`` writes is read in one way: given here, the rest of the layout is no option of the config.
        super().__init__(
            root="", batch_size=batch_size, references="refs.json", test=None, num_workers=num_workers, **options
        )
        self.counts = {"train": num_train, "val": num_val}

    @override
    def default_train_transforms(self) -> list[Transform]:
        return []

    @override
    def open(self) -> dict[str, Source | None]:
        key = repr((LAYOUT, self.counts))
        self.root = write_once("digit-references", key, self.write, source="The expressions about digits")
        return super().open()

    def write(self, folder: Path) -> None:
        """Writes the data set in RefCOCO's layout, with the list of references as JSON."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        references: list[dict[str, Any]] = []
        (folder / "images").mkdir()
        for part, (split, digits) in enumerate((("train", TRAIN_DIGITS), ("val", VAL_DIGITS))):
            painter = CanvasPainter(digits)
            for place in range(self.counts[split]):
                random = np.random.Generator(np.random.PCG64([CANVAS_SEED, part, place, 1]))
                drawn = scene(random)
                pixels = paint(drawn, painter, random)
                number = len(images) + 1
                Image.fromarray(pixels).save(folder / "images" / f"digits_{number:012d}.png", compress_level=1)
                images.append({"id": number, "width": GRID * CELL, "height": GRID * CELL})
                for text, which in expressions(drawn):
                    identity = len(annotations) + 1
                    box = ink_box(pixels, drawn.cells[which])
                    annotations.append({"id": identity, "image_id": number, "bbox": box})
                    ids = {"ref_id": identity, "ann_id": identity, "image_id": number, "split": split}
                    references.append(ids | {"sentences": [{"sent": text}]})
        (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        (folder / "refs.json").write_text(json.dumps(references))


def expressions(drawn: Scene) -> list[tuple[str, int]]:
    """Expressions about a scene, and which of its digits each means."""
    asked = drawn.labels[0]
    return [
        (f"the {asked}", 0),
        (f"the digit that touches the {asked}", 1),
        (f"the digit {APART} cells from the {asked}", 2),
    ]


def ink_box(pixels: np.ndarray, cell: np.ndarray) -> list[int]:
    """The box of the ink in a cell: x, y, width and height in pixels.

    Args:
        pixels: uint8 [64,64,3].
        cell: Row and column.
    """
    top, left = (CELL * cell).tolist()
    ink = pixels[top : top + CELL, left : left + CELL, 0] > 255 * INK
    columns, rows = np.flatnonzero(ink.any(0)), np.flatnonzero(ink.any(1))
    width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
    return [int(left + columns[0]), int(top + rows[0]), int(width), int(height)]
