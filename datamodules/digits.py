"""scikit-learn's handwritten digits: 1797 grey images of 8x8 pixels that come with the library."""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np
from sklearn.datasets import load_digits
from typing_extensions import override

from datamodules.arrays import ImageArrays
from datamodules.base import DataModule
from datamodules.errors import OptionError
from datamodules.ordering import derived_seed
from datamodules.splits import Source, Subset, hold_out
from datamodules.transforms.pipeline import Transform


class Digits(DataModule):
    """Handwritten digits 0-9, in three fixed stratified splits (train 70%, validation 10%, test 20%).

    Batch: ``image`` [B,3,H,W], ``label`` int64 [B], ``index`` int64 [B]; H = W = 8 unless the transforms resize.

    Args:
        batch_size: Samples of one batch over all processes.
        holdout: Validation images taken from the training part: a number, or a fraction of all 1797.
        label_noise: Share of the labels to train on that are drawn anew from all ten, by the run's seed.
        options: Further options of ``DataModule``. By default digits to train on are slightly shifted, turned and
            scaled, and others resized to 8x8, which leaves digits as they are and makes any picture fit.
    """

    mean = (0.3052, 0.3052, 0.3052)
    std = (0.3757, 0.3757, 0.3757)

    def __init__(
        self,
        batch_size: int = 64,
        holdout: int | float = 0.1,
        label_noise: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, **options)
        if not 0 <= label_noise <= 1:
            raise OptionError(f"label_noise is a share of the labels, from 0 to 1, not {label_noise}")
        self.holdout = holdout
        self.label_noise = label_noise
        self.class_names = [str(digit) for digit in range(10)]

    @override
    def default_train_transforms(self) -> list[Transform]:
        return [
            A.Affine(
                translate_percent=(-0.08, 0.08),
                rotate=(-10, 10),
                scale=(0.92, 1.08),
                interpolation=cv2.INTER_LINEAR,
                p=0.8,
            )
        ]

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return [A.Resize(8, 8, interpolation=cv2.INTER_AREA)]

    @override
    def open(self) -> dict[str, Source | None]:
        pixels, labels = load_digits(return_X_y=True)
        # Grey values are 0..16; 255/16 keeps them apart and fills the byte.
        images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8).repeat(3, axis=3)
        digits = ImageArrays(images, labels.astype(np.int64), "digits")
        rest, test = hold_out(digits.labels, 0.2)
        amount = round(self.holdout * len(digits)) if self.holdout < 1 else self.holdout
        kept, held = hold_out(digits.labels[rest], int(amount))
        return {
            "train": Subset(ImageArrays(images, self._noisy(digits.labels), digits.title), rest[kept]),
            "val": Subset(digits, rest[held]) if len(held) else None,
            "test": Subset(digits, test),
        }

    def _noisy(self, labels: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng(derived_seed(self.seed, "labels"))
        drawn = generator.integers(len(self.class_names), size=len(labels))
        return np.where(generator.random(len(labels)) < self.label_noise, drawn, labels)
