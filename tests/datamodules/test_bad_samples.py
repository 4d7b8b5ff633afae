"""What a run does about files it cannot read: one error that names file and record, or a counted, bounded skip."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DataError, ImageFolder
from datamodules.ordering import permutation

RESIZE = [A.Resize(16, 16)]


def folder(root: Path, **options: Any) -> ImageFolder:
    return ImageFolder(
        root, **{"batch_size": 6, "holdout": 0, "train_transforms": RESIZE, "eval_transforms": RESIZE} | options
    )


@pytest.fixture
def broken(image_tree: Path) -> Path:
    """The tree's second bee cut off, its third empty; a test split that is a copy with the same faults."""
    bees = image_tree / "train" / "bee"
    content = (bees / "01.png").read_bytes()
    (bees / "01.png").write_bytes(content[: len(content) // 2])
    (bees / "02.png").write_bytes(b"")
    for file in list((image_tree / "train").rglob("*.png")):
        copy = image_tree / "test" / file.relative_to(image_tree / "train")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return image_tree


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "test"])
def test_error_names_file_record_and_remedy(broken: Path, workers: int, split: str) -> None:
    data = folder(broken, num_workers=workers)
    with pytest.raises(DataError) as caught:
        list(getattr(data, f"{split}_dataloader")())
    message = str(caught.value)
    assert any(str(broken / split / "bee" / f"0{n}.png") + f" (index {12 + n}, label 1)" in message for n in (1, 2))
    assert "on_bad_sample: skip" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_in_training_substitutes_the_next_readable_sample(broken: Path, workers: int) -> None:
    data = folder(broken, num_workers=workers, on_bad_sample="skip")
    with pytest.warns(UserWarning, match=r"Skipped .*bee/0[12]\.png") as warned:
        batches = list(data.train_dataloader())
    assert [len(batch["index"]) for batch in batches] == [6] * 6
    seen = torch.cat([batch["index"] for batch in batches]).tolist()
    expected = [15 if index in (13, 14) else index for index in order(data)]
    assert seen == expected
    assert {Path(name).name for name in data.bad_samples} == {"01.png", "02.png"}
    assert len(warned) == 2
    assert "2 skipped so far" in str(warned[1].message)
    # A file is warned of once, and counted once.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(data.train_dataloader())
    assert len(data.bad_samples) == 2


def order(data: ImageFolder) -> list[int]:
    return permutation(data.seed, 0, len(data.source("train"))).tolist()


@pytest.mark.filterwarnings("ignore:Skipped")
@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_in_evaluation_leaves_the_sample_out(broken: Path, workers: int) -> None:
    data = folder(broken, num_workers=workers, on_bad_sample="skip", batch_size=2)
    seen = torch.cat([batch["index"] for batch in data.test_dataloader()]).tolist()
    assert seen == [index for index in range(36) if index not in (13, 14)]


@pytest.mark.filterwarnings("ignore:Skipped")
def test_skips_are_bounded(broken: Path) -> None:
    with pytest.raises(DataError, match="2 samples could not be read, more than max_bad_samples=1"):
        list(folder(broken, on_bad_sample="skip", max_bad_samples=1).train_dataloader())


@pytest.mark.filterwarnings("ignore:Skipped")
def test_nothing_readable_is_an_error_not_an_endless_search(image_tree: Path) -> None:
    for file in image_tree.rglob("*.png"):
        file.write_bytes(b"")
    data = folder(image_tree, on_bad_sample="skip", max_bad_samples=10)
    with pytest.raises(DataError, match="max_bad_samples=10"):
        list(data.train_dataloader())


class Explode(A.ImageOnlyTransform):
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        raise ValueError("my own mistake")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_failing_transform_is_never_taken_for_a_bad_file(image_tree: Path, policy: Any, workers: int) -> None:
    data = folder(image_tree, train_transforms=[Explode(p=1)], on_bad_sample=policy, num_workers=workers)
    with pytest.raises(DataError, match="my own mistake") as caught:
        list(data.train_dataloader())
    assert "Check train_transforms" in str(caught.value)
    assert "in apply" in str(caught.value)


def test_extreme_shapes_pass_the_default_pipelines(image_tree: Path) -> None:
    for name, size in (("a.png", (1, 1)), ("b.png", (200, 1)), ("c.jpg", (1, 90)), ("d.jpg", (3, 2))):
        Image.new("RGB", size, "green").save(image_tree / "train" / "ant" / name)
    data = ImageFolder(image_tree, batch_size=8, holdout=0)
    for batch in data.train_dataloader():
        assert batch["image"].shape[1:] == (3, 224, 224)
    data.predict_paths = [image_tree / "train" / "ant"]
    data.setup("predict")
    assert sum(len(batch["index"]) for batch in data.predict_dataloader()) == 16


def test_an_image_too_elongated_to_resize_is_named(image_tree: Path) -> None:
    Image.new("RGB", (1, 30_000)).save(image_tree / "line.png")
    data = ImageFolder(image_tree)
    data.predict_paths = [image_tree / "line.png"]
    with pytest.raises(DataError, match=r"line\.png .*elongated"):
        list(data.predict_dataloader())
