"""Data sets of images and label files, by the example of Cityscapes: batches, faults in files, and class weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import CamVid, Cityscapes, DataError
from datamodules.segmentation import LabelledPixels
from datamodules.transforms import PaddedCrop
from tests.library.images import image_size
from tests.library.street_files import save, street

SIZE = (16, 32)
CROP = [PaddedCrop(8, 16), A.HorizontalFlip()]


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    """Cityscapes with 6 training and 3 validation images; the picture shows the ids, which are random."""
    root = tmp_path / "cityscapes"
    for split, number in (("train", 6), ("val", 3)):
        for frame in range(number):
            ids = np.random.default_rng([frame, number]).integers(0, 34, SIZE).astype(np.uint8)
            image, mask = street(root, split, frame)
            save(image, np.repeat(ids[..., None], 3, axis=2))
            save(mask, ids)
    return root


def cityscapes(root: Path, **options: Any) -> Cityscapes:
    return Cityscapes(root, **{"batch_size": 3, "train_transforms": CROP, "num_workers": 0} | options)


def expected_train_ids(ids: np.ndarray) -> np.ndarray:
    table = dict(zip(Cityscapes.label_map.ids, range(19), strict=True))
    return np.vectorize(lambda value: table.get(int(value), 255))(ids)


def test_training_batches(streets: Path) -> None:
    data = cityscapes(streets)
    batches = list(data.train_dataloader())
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(6))
    for batch in batches:
        assert (batch["image"].dtype, batch["image"].shape) == (torch.uint8, (3, 3, 8, 16))
        assert (batch["label"].dtype, batch["label"].shape) == (torch.uint8, (3, 8, 16))
        # Labels were cropped and mirrored as their images were.
        np.testing.assert_array_equal(batch["label"], expected_train_ids(batch["image"][:, 0].numpy()))
        ready = data.on_after_batch_transfer(batch, 0)
        assert ready["image"].dtype == torch.float32
        torch.testing.assert_close(ready["image"][:, 0] * 0.229 + 0.485, batch["image"][:, 0] / 255)


def test_augmentation_is_a_function_of_seed_epoch_and_index(streets: Path) -> None:
    def epoch(number: int, workers: int, seed: int = 0) -> torch.Tensor:
        data = cityscapes(streets, num_workers=workers)
        data.seed = seed
        loader = data.train_dataloader()
        loader.set_epoch(number)
        batches = list(loader)
        return torch.cat([torch.cat([b["image"][:, 0], b["label"]], 1) for b in batches])

    assert torch.equal(epoch(0, 0), epoch(0, 1))
    assert not torch.equal(epoch(0, 0), epoch(1, 0))
    assert not torch.equal(epoch(0, 0), epoch(0, 0, seed=1))


def test_labels_of_an_evaluation_keep_the_size_of_their_files(streets: Path) -> None:
    data = cityscapes(streets, eval_transforms=[A.Resize(4, 8)], eval_batch_size=2)
    batches = list(data.val_dataloader())
    assert [tuple(batch["image"].shape) for batch in batches] == [(2, 3, 4, 8), (1, 3, 4, 8)]
    assert [tuple(batch["label"].shape) for batch in batches] == [(2, *SIZE), (1, *SIZE)]
    for frame, label in enumerate(torch.cat([batch["label"] for batch in batches])):
        ids = np.asarray(Image.open(street(streets, "val", frame)[1]))
        np.testing.assert_array_equal(label, expected_train_ids(ids))
        np.testing.assert_array_equal(data.raw_label("val", frame), label)


def test_what_a_data_module_says_of_itself(streets: Path) -> None:
    data = cityscapes(streets)
    assert (data.num_classes, data.ignore_index, data.class_names[18], data.label_ids[18]) == (19, 255, "bicycle", 33)
    assert (data.palette.dtype, data.palette.shape, data.palette[13].tolist()) == (np.uint8, (19, 3), [0, 0, 142])
    assert image_size(data) == (3, 1024, 2048)
    assert image_size(cityscapes(streets, eval_transforms=[A.Resize(64, 128)])) == (3, 64, 128)
    assert data.has("val")
    # Files of the test split come with empty labels, which nobody shall be told the accuracy of.
    street_image, mask = street(streets, "test", 0)
    save(street_image, np.zeros((*SIZE, 3), np.uint8))
    save(mask, np.zeros(SIZE, np.uint8))
    again = cityscapes(streets)
    assert not again.has("test")
    again.predict_paths = [street_image.parent]
    again.setup("predict")
    (batch,) = again.predict_dataloader()
    assert batch.keys() == {"image", "index"}


def test_train_ids_are_read_as_they_are(streets: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for mask in (streets / "gtFine" / split).rglob("*.png"):
            target = tmp_path / "converted" / mask.relative_to(streets)
            ids = expected_train_ids(np.asarray(Image.open(mask))).astype(np.uint8)
            save(target.with_name(target.name.replace("labelIds", "labelTrainIds")), ids)
    (tmp_path / "converted" / "leftImg8bit").symlink_to(streets / "leftImg8bit")
    first, second = cityscapes(streets), cityscapes(tmp_path / "converted")
    for split, count in (("train", 6), ("val", 3)):
        for index in range(count):
            np.testing.assert_array_equal(first.raw_label(split, index), second.raw_label(split, index))
    # Where both kinds are there, one is read.
    for mask in (tmp_path / "converted" / "gtFine").rglob("*.png"):
        mask.rename(streets / mask.relative_to(tmp_path / "converted"))
    both = cityscapes(streets)
    np.testing.assert_array_equal(first.raw_label("train", 0), both.raw_label("train", 0))
    assert len(both.source("train")) == 6


def test_the_start_lists_folders_and_opens_no_file(streets: Path) -> None:
    for file in streets.rglob("*.png"):
        file.write_bytes(b"")
    assert len(cityscapes(streets).source("train")) == 6


def test_a_missing_folder_says_what_belongs_there(streets: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/leftImg8bit/train and .* missing: Cityscapes has .*_gtFine_labelIds"):
        cityscapes(streets / "nowhere").setup("fit")


@pytest.mark.parametrize("fault", ["missing", "size", "palette", "unreadable", "image", "no image"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_faults_are_named_or_left_out(streets: Path, split: str, fault: str) -> None:
    image, mask = street(streets, split, 1)
    if fault == "missing":
        mask.unlink()
    elif fault == "no image":
        image.unlink()
    elif fault == "size":
        save(mask, np.zeros((16, 31), np.uint8))
    elif fault == "palette":
        save(mask, np.full(SIZE, 77, np.uint8))
    elif fault == "image":
        image.write_bytes(image.read_bytes()[:60])
    else:
        mask.write_bytes(mask.read_bytes()[:60])
    reason = {
        "missing": "its label file .* is missing",
        "no image": r"its image .*_leftImg8bit\.\* is missing",
        "size": "it has 31x16 pixels and its image 32x16",
        "palette": "label values 77 are outside the palette",
        "unreadable": "label file .* cannot be read",
        "image": "corrupt or truncated",
    }[fault]

    def batches(**options: Any) -> tuple[LabelledPixels, list[dict[str, Any]]]:
        data = cityscapes(streets, **options)
        return data, list(data.train_dataloader() if split == "train" else data.val_dataloader())

    with pytest.raises(DataError, match=reason) as caught:
        batches()
    message = str(caught.value)
    assert "ulm_000001_000019" in message
    assert "on_bad_sample: skip" in message
    assert "Traceback" not in message
    with pytest.warns(UserWarning, match="ulm_000001_000019"):
        data, found = batches(on_bad_sample="skip")
    assert len(data.bad_samples) == 1
    labels = torch.cat([batch["label"] for batch in found])
    listed_at_start = fault in ("missing", "no image")
    assert len(labels) == {"train": 3 if listed_at_start else 6, "val": 2}[split]
    with pytest.raises(DataError, match="max_bad_samples=0"):
        batches(on_bad_sample="skip", max_bad_samples=0)


def test_a_split_without_any_pair_is_an_error(streets: Path) -> None:
    for mask in (streets / "gtFine" / "val").rglob("*.png"):
        mask.unlink()
    with pytest.raises(DataError, match="3 files of the val split are without partner"):
        cityscapes(streets).setup("fit")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match=r"No image in .*val has a label file"),
    ):
        cityscapes(streets, on_bad_sample="skip").setup("fit")


def test_two_images_of_one_name_are_an_error(streets: Path) -> None:
    image = street(streets, "train", 0)[0]
    Image.open(image).save(image.with_suffix(".jpg"))
    with pytest.raises(DataError, match=r"has both .*\.(png|jpg) and .*ulm_000000_000019_leftImg8bit\.(png|jpg)"):
        cityscapes(streets).setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_many_sizes_are_evaluated_one_by_one(streets: Path, workers: int) -> None:
    image, mask = street(streets, "val", 1)
    save(image, np.zeros((20, 24, 3), np.uint8))
    save(mask, np.zeros((20, 24), np.uint8))
    assert [tuple(b["image"].shape[2:]) for b in cityscapes(streets).val_dataloader()] == [SIZE, (20, 24), SIZE]
    with pytest.raises(DataError, match=r"Images of one batch differ in size \(32x16, 24x20.*set eval_batch_size: 1"):
        list(cityscapes(streets, eval_batch_size=2, num_workers=workers).val_dataloader())
    # Images of one size do not help when labels keep theirs.
    resized = cityscapes(streets, eval_batch_size=2, eval_transforms=[A.Resize(8, 8)], num_workers=workers)
    with pytest.raises(DataError, match="Labels of one batch differ in size"):
        list(resized.val_dataloader())


def test_eval_batch_size_counts_the_images_of_each_process(streets: Path) -> None:
    data = cityscapes(streets, eval_batch_size=2)
    assert (data.eval_batch(1), data.eval_batch(4)) == (2, 8)
    with pytest.raises(DataError, match="eval_batch_size=0"):
        cityscapes(streets, eval_batch_size=0)


def test_class_frequencies_and_weights(tmp_path: Path) -> None:
    root = tmp_path / "streets"
    for split in ("train", "val"):
        for frame, ids in enumerate(([7, 7, 7, 8], [7, 8, 0, 33])):
            image, mask = street(root, split, frame)
            save(image, np.zeros((2, 2, 3), np.uint8))
            save(mask, np.array(ids, np.uint8).reshape(2, 2))
    data = cityscapes(root, class_weighting="frequency")
    expected = np.zeros(19)
    expected[[0, 1, 18]] = 4 / 8, 2 / 8, 1 / 8
    np.testing.assert_allclose(data.class_frequencies(), expected)
    weights = data.class_weights
    assert weights is not None
    np.testing.assert_allclose([weights[0], weights[2]], [1 / math.log(1.52), 1 / math.log(1.02)])
    # They are counted again when a file has changed.
    save(street(root, "train", 0)[1], np.full((2, 2), 33, np.uint8))
    assert cityscapes(root).class_frequencies()[18] == 5 / 8
    street(root, "train", 1)[1].write_bytes(b"")
    with pytest.raises(DataError, match="ulm_000001"):
        cityscapes(root).class_frequencies()
    with pytest.warns(UserWarning, match="Skipped"):
        assert cityscapes(root, on_bad_sample="skip").class_frequencies()[18] == 1


def test_class_weighting_is_what_the_data_set_has() -> None:
    published = Cityscapes("", class_weighting="published").class_weights
    assert published is not None
    assert len(published) == 19
    assert Cityscapes("").class_weights is None
    with pytest.raises(
        ValueError, match=r"class_weighting='published' must be one of \['frequency', None\] for CamVid"
    ):
        CamVid("", class_weighting="published")


def test_transforms_that_would_label_their_padding_are_refused() -> None:
    with pytest.raises(ValueError, match="Affine labels the pixels that it adds as class 0"):
        Cityscapes("", train_transforms=[A.Affine()])
