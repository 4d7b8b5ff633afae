"""Images of one's own without classes, trained on in several views of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
from typing_extensions import override

from datamodules.base import DataModule
from datamodules.errors import DataError, OptionError
from datamodules.files import ImageFiles
from datamodules.pixels import Pixels
from datamodules.splits import Source, Subset, hold_out
from datamodules.transforms import Transform
from datamodules.transforms.pipeline import Augmentation
from datamodules.transforms.recipes import evaluate_centre
from datamodules.transforms.views import Views
from datamodules.views import View


class UnlabelledFolder(DataModule):
    """The images of a folder and its subfolders, whatever these are called; none has a class.

    Batch: ``image`` [B,3,H,W] and ``index`` int64 [B]; in training ``image`` is a list of tensors [V,B,3,H,W], one for
    each size of view.

    Args:
        root: The folder.
        batch_size: Samples of one batch over all processes.
        holdout: Images that are not trained on, to look at the features with: a number, or a fraction below 1.
        views: Views of each training image; by default two by ``train_transforms``.
        options: Further options of ``DataModule``. By default images to train on are cropped at random, flipped and
            changed in colour, as contrastive learning has it, and others resized to a shorter side of 256 and cropped
            to the middle 224x224.

    Raises:
        OptionError: If there are views without any, or less than one copy of one.
    """

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 64,
        holdout: int | float = 0.1,
        views: list[View] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, **options)
        if views is not None and (not views or any(view.copies < 1 for view in views)):
            raise OptionError("views: name at least one view, each with copies of 1 or more.")
        self.root, self.holdout, self._views = Path(root), holdout, views

    @property
    def views(self) -> list[View]:
        """Views of each training image."""
        return self._views or [View(self.train_transforms, copies=2)]

    @override
    def default_train_transforms(self) -> list[Transform]:
        return contrastive_view(self.pixels)

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return evaluate_centre(self.pixels)

    @override
    def open(self) -> dict[str, Source | None]:
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder. Give a folder of images, which may have others in it.")
        images: Any = ImageFiles([self.root])
        kept, held = hold_out(np.zeros(len(images), np.int64), self.holdout)
        return {"train": Subset(images, kept), "val": Subset(images, held) if len(held) else None, "test": None}

    @override
    def pipeline_for(self, split: str) -> Augmentation:
        if split != "train":
            return super().pipeline_for(split)
        return Views([view.transforms for view in self.views for _ in range(view.copies)], self.stream_seed(split))


def contrastive_view(pixels: Pixels) -> list[Transform]:
    """A view as MoCo v2 and its successors make them, at the size that weights state, else 224."""
    return [
        A.RandomResizedCrop(pixels.size or (224, 224), scale=(0.2, 1.0)),
        A.HorizontalFlip(),
        A.ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.1, 0.1), p=0.8),
        A.ToGray(p=0.2),
    ]
