"""Questions about scenes of handwritten digits, written once to disk as VQA v2 is and read like it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typing_extensions import override

from datamodules.cache import write_once
from datamodules.canvases import CanvasPainter
from datamodules.errors import OptionError
from datamodules.scenes import CANVAS_SEED, TRAIN_DIGITS, VAL_DIGITS
from datamodules.splits import Source
from datamodules.transforms.pipeline import Transform
from datamodules.vqa import VQA

LAYOUT = "digit-questions-1"
# Cells of a side, and pixels of a cell's.
GRID, CELL = 8, 8
# Digits of a scene, which are all different, and how many cells the second and third one may be from the first.
DIGITS, NEAR, APART = 6, 1, 3
PEOPLE = 10
# Validation images are numbered from here on.
FIRST_VAL = 1_000_000


@dataclass(frozen=True)
class Scene:
    """Digits in cells.

    Args:
        labels: Of the digits, int64 [6]: the one that is asked about, the one that touches it, the one that is three
            cells away, and others that are farther.
        cells: Row and column of each, int64 [6,2].
    """

    labels: np.ndarray
    cells: np.ndarray


def _touches(scene: Scene) -> tuple[str, str, str]:
    return f"which digit touches the {scene.labels[0]}?", str(scene.labels[1]), "other"


def _cells(scene: Scene) -> tuple[str, str, str]:
    return f"which digit is {APART} cells from the {scene.labels[0]}?", str(scene.labels[2]), "other"


def _count(scene: Scene) -> tuple[str, str, str]:
    asked = scene.labels[0]
    return f"how many digits are greater than {asked}?", str((scene.labels > asked).sum()), "number"


def _compare(scene: Scene) -> tuple[str, str, str]:
    asked, other = scene.labels[:2]
    return f"is the digit that touches the {asked} greater than it?", "yes" if other > asked else "no", "yes/no"


def _where(scene: Scene) -> tuple[str, str, str]:
    row, column = (scene.cells[0] >= GRID // 2).tolist()
    place = f"{('top', 'bottom')[row]} {('left', 'right')[column]}"
    return f"where is the {scene.labels[0]}?", place, "other"


# A question, its answer and the kind of that.
QUESTIONS: dict[str, Callable[[Scene], tuple[str, str, str]]] = {
    "touches": _touches,
    "cells": _cells,
    "count": _count,
    "compare": _compare,
    "where": _where,
}


class DigitQuestions(VQA):
    """Scenes of six different digits in a grid of 8x8 cells, and questions that ask for cells near and far.

    In a scene, one digit touches the one that is asked about, another one is three cells from it, and the others are
    farther and touch nothing. All questions are asked of every scene: which digit touches the 3, which is 3 cells from
    it, how many are greater, whether the one that touches it is, and where it is.

    Batch: as ``VQA``, with images of 64x64 pixels. The data set is written to the cache folder on first use.

    Args:
        batch_size: Questions of one batch over all processes.
        num_train: Training scenes, of the first 1297 digits.
        num_val: Validation scenes, of the other 500.
        kinds: Kinds of questions: ``touches``, ``cells``, ``count``, ``compare`` and ``where``.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. By default there are no transforms.

    Raises:
        OptionError: If there are no scenes, or a kind of question is none.
    """

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    typical_size = (GRID * CELL, GRID * CELL)

    def __init__(
        self,
        batch_size: int = 64,
        num_train: int = 8000,
        num_val: int = 1500,
        kinds: list[str] | None = None,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        self.kinds = list(QUESTIONS) if kinds is None else kinds
        if not (1 <= num_train <= FIRST_VAL and num_val >= 1):
            raise OptionError(f"num_train={num_train} and num_val={num_val} must be at least 1, and no million.")
        if not self.kinds or set(self.kinds) - set(QUESTIONS):
            raise OptionError(f"kinds={self.kinds}: the kinds of questions are {', '.join(QUESTIONS)}.")
        # What ``write`` writes is read in one way: given here, the rest of the layout is no option of the config.
        super().__init__(root="", batch_size=batch_size, length=10, fewest=1, num_workers=num_workers, **options)
        self.counts = {"train": num_train, "val": num_val}
        self.painters = {"train": CanvasPainter(TRAIN_DIGITS), "val": CanvasPainter(VAL_DIGITS)}

    @override
    def default_train_transforms(self) -> list[Transform]:
        return []

    @override
    def open(self) -> dict[str, Source | None]:
        key = repr((LAYOUT, self.counts, self.kinds))
        self.root = write_once("digit-questions", key, self.write, source="The questions about digits")
        return super().open()

    def write(self, folder: Path) -> None:
        """Writes the data set in VQA v2's layout."""
        for part, (split, painter) in enumerate(self.painters.items()):
            subset = self.subsets[split][0]
            images = folder / self.images.format(subset=subset)
            images.mkdir()
            questions: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            # Images of all subsets have numbers of their own, as in VQA v2.
            for number in range(part * FIRST_VAL + 1, part * FIRST_VAL + self.counts[split] + 1):
                random = np.random.Generator(np.random.PCG64([CANVAS_SEED, part, number]))
                drawn = scene(random)
                picture = Image.fromarray(paint(drawn, painter, random))
                picture.save(images / f"COCO_{subset}_{number:012d}.png", compress_level=1)
                for place, kind in enumerate(self.kinds):
                    asked, answer, answer_type = QUESTIONS[kind](drawn)
                    ids = {"image_id": number, "question_id": 1000 * number + place}
                    questions.append(ids | {"question": asked})
                    annotations.append(
                        ids
                        | {
                            "question_type": kind,
                            "answer_type": answer_type,
                            "multiple_choice_answer": answer,
                            "answers": [{"answer": answer, "answer_id": i + 1} for i in range(PEOPLE)],
                        }
                    )
            for file, content in ((self.question_file, questions), (self.annotation_file, annotations)):
                section = "questions" if content is questions else "annotations"
                (folder / file.format(subset=subset)).write_text(json.dumps({section: content}))


def scene(random: np.random.Generator) -> Scene:
    """A scene as ``DigitQuestions`` describes it.

    Args:
        random: Where its random numbers come from.
    """
    grid = np.indices((GRID, GRID)).reshape(2, -1).T
    while True:
        cells = random.integers(GRID, size=(1, 2))
        for place in range(1, DIGITS):
            far = np.abs(grid[:, None] - cells).max(-1)
            # Nothing but the first two touch.
            apart = {1: far[:, 0] == NEAR, 2: far[:, 0] == APART}.get(place, far[:, 0] > APART)
            free = apart & (far[:, 1:] > NEAR).all(1)
            if not free.any():
                break
            cells = np.concatenate([cells, grid[[random.choice(np.flatnonzero(free))]]])
        else:
            return Scene(random.permutation(10)[:DIGITS], cells)


def paint(drawn: Scene, painter: CanvasPainter, random: np.random.Generator) -> np.ndarray:
    """A scene in grey on black, uint8 [64,64,3].

    Args:
        drawn: The scene.
        painter: Has the digits.
        random: Where it comes from which of the digits of a label are taken.
    """
    picture = np.zeros((GRID * CELL, GRID * CELL), np.float32)
    for label, (row, column) in zip(drawn.labels, drawn.cells, strict=True):
        digit = painter.pixels[random.choice(np.flatnonzero(painter.labels == label))]
        picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = digit
    return np.repeat(np.rint(255 * picture).astype(np.uint8)[..., None], 3, 2)
