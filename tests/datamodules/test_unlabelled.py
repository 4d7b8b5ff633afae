"""A folder of images without classes."""

from __future__ import annotations

from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DataError, UnlabelledFolder, View


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images, flat and in folders."""
    for i in range(12):
        folder = tmp_path / ("" if i < 4 else f"trip {i % 2}/day")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 20 * i, np.uint8)).save(folder / f"{i:02d}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_all_images_are_there_once_and_have_no_class(photos: Path) -> None:
    data = UnlabelledFolder(photos, batch_size=4, holdout=3)
    data.setup("fit")
    assert data.num_classes == 0
    names = [data.sample_name(split, i) for split in ("train", "val") for i in range(len(data.source(split)))]
    assert len(names) == 12
    assert {Path(name) for name in names} == set(photos.rglob("*.png"))
    assert not data.has("test")
    (batch,) = data.val_dataloader()
    assert batch.keys() == {"image", "index"}
    assert batch["image"].shape == (3, 3, 224, 224)
    again = UnlabelledFolder(photos, batch_size=4, holdout=3)
    assert again.sample_name("val", 0) == data.sample_name("val", 0)


def test_views_are_the_configs_or_two_random_crops(photos: Path) -> None:
    data = UnlabelledFolder(photos, batch_size=4)
    (views,) = next(iter(data.train_dataloader()))["image"]
    assert views.shape == (2, 4, 3, 224, 224)
    assert not torch.equal(views[0], views[1])
    sizes = [View([A.RandomResizedCrop((16, 16))], 2), View([A.Resize(8, 8)])]
    own = UnlabelledFolder(photos, batch_size=4, views=sizes)
    batch = next(iter(own.train_dataloader()))
    assert [view.shape for view in batch["image"]] == [(2, 4, 3, 16, 16), (1, 4, 3, 8, 8)]
    assert "label" not in batch
    # What is looked at without augmentation are single images.
    assert next(iter(own.plain_train_dataloader()))["image"].ndim == 4
    with pytest.raises(DataError, match="views: name at least one view"):
        UnlabelledFolder(photos, views=[])


def test_files_beside_the_data_set(photos: Path) -> None:
    data = UnlabelledFolder(photos, batch_size=4)
    batches = list(data.file_dataloader([photos / "trip 0", photos / "00.png"]))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert data.sample_name("files", 4) == str(photos / "00.png")


def test_nothing_to_learn_from(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos is not a folder\. Give a folder of images"):
        UnlabelledFolder(tmp_path / "photos").setup("fit")
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no image \(\.bmp"):
        UnlabelledFolder(empty).setup("fit")
    with pytest.raises(DataError, match=r"11 training samples are fewer than one optimiser step takes \(64 x 1"):
        UnlabelledFolder(photos, holdout=1).train_dataloader()


def test_a_crop_larger_than_the_image_is_one_line(photos: Path) -> None:
    data = UnlabelledFolder(photos, batch_size=4, views=[View([A.RandomCrop(32, 32)], 2)])
    with pytest.raises(DataError) as told:
        next(iter(data.train_dataloader()))
    message = str(told.value)
    assert "\n" not in message
    assert ".png (index " in message
    assert "a crop is larger than the image: crop the image smaller, or resize it first" in message
    assert "(32, 32) vs (20, 30)" in message
