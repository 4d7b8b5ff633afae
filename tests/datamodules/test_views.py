"""Several views of one image, from the pipeline to the device."""

from __future__ import annotations

import io

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DataError, Digits
from datamodules.collation import stack
from datamodules.decoding import Encoded
from datamodules.transforms import Views
from datamodules.transforms.pipeline import Augmentation

LARGE, SMALL = [A.RandomCrop(6, 6), A.HorizontalFlip()], [A.RandomCrop(4, 4)]


class Crops(Digits):
    """Digits, seen in two large crops and three small ones."""

    def pipeline_for(self, split: str) -> Augmentation:
        if split == "train":
            return Views([LARGE, SMALL, LARGE, SMALL, SMALL], self.stream_seed(split))
        return super().pipeline_for(split)


def test_views_of_one_size_become_one_tensor() -> None:
    data = Crops(batch_size=100)
    batch = next(iter(data.train_dataloader()))
    assert [images.shape for images in batch["image"]] == [(2, 100, 3, 6, 6), (3, 100, 3, 4, 4)]
    ready = data.on_after_batch_transfer(batch, 0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    for images, normalised in zip(batch["image"], ready["image"], strict=True):
        torch.testing.assert_close(normalised, (images / 255 - mean) / std, atol=1e-5, rtol=0)
    evaluated = next(iter(data.val_dataloader()))["image"]
    assert evaluated.shape == (100, 3, 8, 8)


def test_views_keep_their_order() -> None:
    samples = [
        {"image": [np.full((side, side, 3), 10 * sample + view, np.uint8) for view, side in enumerate((6, 4, 6))]}
        for sample in range(2)
    ]
    large, small = stack(samples)["image"]
    assert large[:, :, 0, 0, 0].tolist() == [[0, 10], [2, 12]]
    assert small[:, :, 0, 0, 0].tolist() == [[1, 11]]


def test_views_are_drawn_apart_and_again_alike() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, 2)
    corners = []
    for index in range(40):
        views, again = (Views([SMALL, SMALL], seed=3)({"image": image}, 1, index)["image"] for _ in range(2))
        assert all(np.array_equal(*pair) for pair in zip(views, again, strict=True))
        corners.append([int(view[0, 0, 0]) for view in views])
    first, second = np.array(corners).T
    # Of 25 places, two views share one now and then.
    assert (first == second).sum() < 8
    assert not np.array_equal(
        first, [int(Views([SMALL], 4)({"image": image}, 1, i)["image"][0][0, 0, 0]) for i in range(40)]
    )


def test_an_image_is_decoded_once_and_no_view_writes_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blacken(A.ImageOnlyTransform):
        def apply(self, img: np.ndarray, **params: object) -> np.ndarray:
            img[:] = 0
            return img

    decoded, original = [], Encoded.decode
    monkeypatch.setattr(Encoded, "decode", lambda self: decoded.append(1) or original(self))
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(stream, "PNG")
    sample = {"image": Encoded(stream.getvalue()), "label": 7}
    made = Views([[Blacken(p=1)], []])(sample, 0, 0)
    assert made["label"] == 7
    assert [int(view.mean()) for view in made["image"]] == [0, 255]
    assert decoded == [1]


@pytest.mark.parametrize("sides", [(4, 4), (4,), (6, 4)])
def test_images_with_other_views_are_refused(sides: tuple[int, ...]) -> None:
    samples = [{"image": [np.zeros((side, side, 3), np.uint8) for side in each]} for each in ((4, 6), sides)]
    with pytest.raises(DataError, match="differ in"):
        stack(samples)
