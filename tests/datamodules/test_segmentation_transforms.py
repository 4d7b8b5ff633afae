"""Resizes, crops and colours of segmentation: images and labels move together, and void stays void."""

from __future__ import annotations

import random
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.transforms import (
    ClassBalancedCrop,
    PaddedCrop,
    PhotometricDistortion,
    RandomBox,
    RandomLongSide,
    ResizeShortestEdge,
)
from datamodules.transforms.segmentation import (
    MEAN_COLOUR,
    hrnet_augmentation,
    mmseg_augmentation,
)
from datamodules.transforms.segmentation_pipeline import refuse_labelled_fill


def seeded(transform: Any, seed: int = 0) -> Any:
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform


def blocks(height: int, width: int, side: int = 8) -> np.ndarray:
    """Labels in squares, 0 to 6 and void."""
    labels = np.random.default_rng(0).integers(0, 8, (-(-height // side), -(-width // side)))
    labels = np.where(labels == 7, 255, labels).astype(np.uint8)
    return labels.repeat(side, 0).repeat(side, 1)[:height, :width]


def painted(labels: np.ndarray) -> np.ndarray:
    """An image whose every pixel shows its label."""
    return np.repeat(labels[..., None], 3, axis=2)


def test_long_sides_are_hrnets() -> None:
    resize = seeded(RandomLongSide(64))
    sizes = {resize(image=np.zeros((32, 64, 3), np.uint8))["image"].shape[:2] for _ in range(300)}
    longs = [int(64 * (0.5 + step / 10) + 0.5) for step in range(17)]
    assert sizes == {(int(32 * long / 64 + 0.5), long) for long in longs}
    assert (longs[0], longs[-1]) == (32, 134)
    upright = resize(image=np.zeros((64, 30, 3), np.uint8))["image"].shape
    assert upright[0] in longs
    assert upright[1] == int(30 * upright[0] / 64 + 0.5)


@pytest.mark.parametrize(
    ("shape", "at_one"),
    # As MMSegmentation's rescale: the factor that fits both sides, then rounding half up.
    [((1024, 2048), (256, 512)), ((600, 400), (384, 256)), ((100, 1000), (51, 512))],
)
def test_boxes_keep_proportions(shape: tuple[int, int], at_one: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    assert RandomBox(512, 256, (1.0, 1.0))(image=image)["image"].shape[:2] == at_one
    scales = [seeded(RandomBox(512, 256), seed)(image=image)["image"].shape[0] / at_one[0] for seed in range(60)]
    assert 0.48 < min(scales) < 0.6
    assert 1.85 < max(scales) < 2.05


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 9))
def test_crops_move_image_and_labels_alike(
    height: int, width: int, rows: int, columns: int, balanced: bool, seed: int
) -> None:
    labels = blocks(height, width, side=3)
    crop = ClassBalancedCrop if balanced else PaddedCrop
    for padding in ("end", "centre"):
        done = seeded(crop(rows, columns, padding=padding, fill=(255, 255, 255)), seed)(
            image=painted(labels), mask=labels
        )
        assert done["image"].shape == (rows, columns, 3)
        np.testing.assert_array_equal(done["image"], painted(done["mask"]))


def test_padding_is_void_and_where_it_was_asked_for() -> None:
    image, mask = np.full((2, 2, 3), 9, np.uint8), np.ones((2, 2), np.uint8)
    end = PaddedCrop(4, 5)(image=image, mask=mask)
    expected = np.full((4, 5), 255)
    expected[:2, :2] = 1
    np.testing.assert_array_equal(end["mask"], expected)
    np.testing.assert_array_equal(end["image"][..., 0], np.where(expected == 1, 9, 0))
    centre = PaddedCrop(4, 5, padding="centre", fill=MEAN_COLOUR)(image=image, mask=mask)
    np.testing.assert_array_equal(np.argwhere(centre["mask"] == 1), [[1, 1], [1, 2], [2, 1], [2, 2]])
    assert tuple(centre["image"][0, 0]) == MEAN_COLOUR
    none = PaddedCrop(4, 5, padding="none")(image=image, mask=mask)
    assert np.array_equal(none["image"], image)
    assert np.array_equal(none["mask"], mask)
    wide = PaddedCrop(4, 5, padding="none")(image=np.zeros((2, 9, 3), np.uint8), mask=np.zeros((2, 9), np.uint8))
    assert wide["image"].shape == (2, 5, 3)


def test_colours_of_padding_are_not_distorted() -> None:
    compose = A.Compose(mmseg_augmentation(64, 64, 16), seed=0)
    image, mask = np.full((16, 64, 3), 40, np.uint8), np.arange(16 * 64, dtype=np.uint8).reshape(16, 64) % 7
    for _ in range(20):
        done = compose(image=image, mask=mask)
        void = done["mask"] == 255
        assert done["mask"].shape == (64, 64)
        # Below and to the right.
        assert void[-1].all()
        assert not void[0, 0]
        assert (done["image"][void] == MEAN_COLOUR).all()


def test_every_place_is_drawn_and_none_outside() -> None:
    crop = seeded(PaddedCrop(2, 3))
    labels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    corners = {int(crop(image=painted(labels), mask=labels)["mask"][0, 0]) for _ in range(200)}
    assert corners == {0, 1, 2, 5, 6, 7, 10, 11, 12}


def test_crops_of_one_class_are_drawn_again() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 40:] = 1
    labels[:, :8] = 255

    def shares(limit: float) -> list[float]:
        crop = seeded(PaddedCrop(16, 16, max_class_share=limit))
        windows = [crop(image=painted(labels), mask=labels)["mask"] for _ in range(200)]
        counts = [np.bincount(window[window != 255], minlength=2) for window in windows]
        return [float(count.max() / count.sum()) if count.sum() else 1.0 for count in counts]

    dull, varied = (sum(share >= 0.75 for share in shares(limit)) for limit in (1.0, 0.75))
    # A window of variety is at one of 8 of 49 places: of 11 draws, all miss with probability 0.15.
    assert 140 < dull < 190
    assert 10 < varied < 60


def test_an_image_of_one_class_ends_the_search() -> None:
    labels = np.zeros((20, 20), np.uint8)
    assert PaddedCrop(8, 8, max_class_share=0.75)(image=painted(labels), mask=labels)["mask"].shape == (8, 8)


def test_balanced_crops_hold_rare_classes() -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[3, 70], labels[59, 0], labels[20:22, 5] = 1, 2, 255
    crop = seeded(ClassBalancedCrop(16, 16, share=1.0))
    windows = [crop(image=painted(labels), mask=labels)["mask"] for _ in range(300)]
    for rare in (1, 2):
        # A third of the draws each; by chance, 1 in 45 at most would hold the pixel.
        assert 70 < sum((window == rare).any() for window in windows) < 140
    assert len({np.argwhere(window == 1).tobytes() for window in windows if (window == 1).any()}) > 20
    anywhere = seeded(ClassBalancedCrop(16, 16, share=0.01))
    assert sum((anywhere(image=painted(labels), mask=labels)["mask"] == 1).any() for _ in range(300)) < 30


def test_balanced_crops_without_labels_fall_anywhere() -> None:
    void = np.full((20, 20), 255, np.uint8)
    crop = ClassBalancedCrop(8, 8, share=1.0)
    assert crop(image=painted(void), mask=void)["mask"].shape == (8, 8)
    assert crop(image=painted(void))["image"].shape == (8, 8, 3)


@pytest.mark.parametrize(
    "recipe",
    [
        hrnet_augmentation(32, 48, 64),
        mmseg_augmentation(32, 64, 48),
        [ResizeShortestEdge([512, 768], 4096), A.HorizontalFlip(), PaddedCrop(640, 640, padding="centre")],
    ],
)
def test_recipes_keep_labels_labels(recipe: list[Any]) -> None:
    labels = blocks(48, 64)
    compose = A.Compose(recipe, seed=0)
    seen = set()
    for _ in range(8):
        done = compose(image=painted(labels), mask=labels)
        assert done["mask"].dtype == np.uint8
        assert done["image"].shape[:2] == done["mask"].shape
        seen |= set(np.unique(done["mask"]).tolist())
    assert seen == {0, 1, 2, 3, 4, 5, 6, 255}


def test_labels_follow_images_through_resizes() -> None:
    labels = blocks(48, 96, side=24) % 7 * 30
    for transform in (RandomLongSide(200), RandomBox(200, 90), ResizeShortestEdge([70, 130])):
        for seed in range(3):
            done = seeded(transform, seed)(image=painted(labels), mask=labels)
            difference = np.abs(done["image"][..., 0].astype(int) - done["mask"])
            # Only the pixels beside an edge may be mixed.
            assert (difference > 0).mean() < 0.25
            inner = cv2.erode((difference == 0).astype(np.uint8), np.ones((3, 3)))
            assert inner.mean() > 0.5


class Scripted(random.Random):
    """Draws that are written down: uniform() and randint() give the end of their range, random() what is next."""

    def __init__(self, chances: list[float]) -> None:
        super().__init__(0)
        self.chances = chances

    def random(self) -> float:
        return self.chances.pop(0)

    def uniform(self, a: float, b: float) -> float:
        return b

    def randint(self, a: int, b: int) -> int:
        return b


@pytest.mark.parametrize(
    ("chances", "pixel", "expected"),
    [
        # Brightness, contrast first, contrast, saturation, hue: below 0.5 is yes.
        ([0.9, 0.9, 0.9, 0.9, 0.9], (10, 100, 200), (10, 100, 200)),
        ([0.1, 0.9, 0.9, 0.9, 0.9], (10, 100, 240), (42, 132, 255)),
        ([0.9, 0.9, 0.1, 0.9, 0.9], (11, 100, 200), (16, 150, 255)),
        ([0.1, 0.1, 0.1, 0.9, 0.9], (10, 100, 200), (63, 198, 255)),
        # A pure colour of saturation 128 of 255 at 1.5 times: 192 of 255.
        ([0.9, 0.9, 0.9, 0.1, 0.9], (200, 100, 100), (200, 50, 50)),
        # Red, turned by 18 units of two degrees, is 36 degrees from red: 6/10 of the way to yellow.
        ([0.9, 0.9, 0.9, 0.9, 0.1], (255, 0, 0), (255, 153, 0)),
    ],
)
def test_photometric_distortion(chances: list[float], pixel: tuple[int, ...], expected: tuple[int, ...]) -> None:
    distort = PhotometricDistortion()
    distort.set_random_state(np.random.default_rng(0), Scripted(chances))
    labels = np.full((2, 2), 255, np.uint8)
    done = distort(image=np.full((2, 2, 3), pixel, np.uint8), mask=labels)
    assert np.abs(done["image"].astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(done["mask"], labels)


def test_hues_go_round() -> None:
    red = np.full((1, 1, 3), (255, 0, 0), np.uint8)
    turned = PhotometricDistortion().apply(red, shift=0, contrast_first=True, contrast=1.0, saturation=1.0, hue=-18)
    assert np.abs(turned[0, 0].astype(int) - (255, 0, 153)).max() <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomLongSide(0),
        lambda: RandomLongSide(64, scales=(2.0, 1.0)),
        lambda: RandomBox(64, 0),
        lambda: PaddedCrop(0, 4),
        lambda: PaddedCrop(4, 4, max_class_share=0),
        lambda: PaddedCrop(4, 4, padding="left"),  # type: ignore[arg-type]
        lambda: PaddedCrop(4, 4, fill=(0, 0, 256)),
        lambda: ClassBalancedCrop(4, 4, share=0),
        lambda: PhotometricDistortion(hue=91),
        lambda: PhotometricDistortion(contrast=(1.5, 0.5)),
    ],
)
def test_arguments_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        make()


def test_transforms_that_label_what_they_add_are_refused() -> None:
    refuse_labelled_fill([A.RandomCrop(8, 8), A.HorizontalFlip(), A.Pad(4, fill_mask=255), PaddedCrop(8, 8)])
    refuse_labelled_fill([A.Affine(border_mode=cv2.BORDER_REFLECT)])
    for bad in (A.Affine(), A.PadIfNeeded(8, 8), A.OneOf([A.NoOp(), A.Sequential([A.Rotate()])])):
        with pytest.raises(ValueError, match=r"labels the pixels that it adds as class 0.* set its fill_mask to 255"):
            refuse_labelled_fill([A.HorizontalFlip(), bad])
