"""ImageNet-1k as its archives unpack: one folder a WordNet id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.base import DataModule
from datamodules.errors import DataError
from datamodules.folders import ClassFolders, refuse_same_folders
from datamodules.splits import Source, Subset, hold_out
from datamodules.transforms import Transform
from datamodules.transforms.recipes import evaluate_centre, large_image_augmentation

NAMES_FILE = "LOC_synset_mapping.txt"


class ImageNet(DataModule):
    """ImageNet in ``root/train/<wnid>/`` and ``root/val/<wnid>/``.

    The official validation images are the *test* split here; validation images are held out from ``train``, so that
    no choice made during training has seen the images that results are reported on.

    Batch: ``image`` [B,3,H,W], ``label`` int64 [B], ``index`` int64 [B]. Classes are the WordNet ids, sorted; they are
    named by ``root/LOC_synset_mapping.txt`` where it exists.

    Args:
        root: Folder that holds ``train`` and ``val``.
        batch_size: Samples of one batch over all processes.
        holdout: Validation images taken from ``train``: a number, or a fraction below 1; 0 for no validation.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. By default a random crop is resized to 224x224 and flipped; images
            to evaluate are resized to a shorter side of 256 and cropped to the middle 224x224.
    """

    def __init__(
        self,
        root: Path | str,
        batch_size: int = 256,
        holdout: int | float = 10000,
        num_workers: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, num_workers=num_workers, **options)
        self.root, self.holdout = Path(root), holdout

    @override
    def default_train_transforms(self) -> list[Transform]:
        return large_image_augmentation(self.pixels)

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return evaluate_centre(self.pixels)

    @override
    def open(self) -> dict[str, Source | None]:
        folders = [self.root / "train", self.root / "val"]
        missing = [str(folder) for folder in folders if not folder.is_dir()]
        if missing:
            raise DataError(
                f"ImageNet is not complete: {' and '.join(missing)} missing. It needs {folders[0]}/<wnid>/*.JPEG and "
                f"{folders[1]}/<wnid>/*.JPEG. Get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
                "https://image-net.org/download-images (after registration), unpack each class of train into its own "
                "folder and sort the validation images into folders of the same names."
            )
        refuse_same_folders(folders)
        train = ClassFolders(folders[0])
        test = ClassFolders(folders[1], train.class_names)
        self.class_names = self._names(train.class_names)
        kept, held = hold_out(train.labels, self.holdout)
        return {"train": Subset(train, kept), "val": Subset(train, held) if len(held) else None, "test": test}

    def _names(self, wnids: list[str]) -> list[str]:
        file = self.root / NAMES_FILE
        if not file.is_file():
            return wnids
        # A line is "n01440764 tench, Tinca tinca".
        named = dict(line.split(" ", 1) for line in file.read_text().splitlines() if " " in line)
        return [named.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
