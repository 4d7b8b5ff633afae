from __future__ import annotations

import io
import random

import albumentations as A
import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.decoding import Encoded
from datamodules.pixels import Pixels
from datamodules.transforms import AutoAugment, Pipeline, RandAugment, Transform
from datamodules.transforms.recipes import evaluate_centre, large_image_augmentation
from datamodules.transforms.resizing import Resizing, resize

IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def jpeg(image: np.ndarray, quality: int = 90) -> Encoded:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return Encoded(stream.getvalue())


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((one.astype(float) - other) ** 2).mean()))


def test_resize_is_pillows(photo: np.ndarray) -> None:
    for height, width in ((100, 80), (224, 224), (500, 700), (375, 500), (1, 1)):
        expected = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))
        assert np.abs(resize(photo, height, width).astype(int) - expected).max() <= 1


def test_crop_of_a_large_jpeg_looks_as_if_decoded_whole(photo: np.ndarray) -> None:
    large = cv2.resize(photo, (1500, 1125), interpolation=cv2.INTER_CUBIC)
    file = jpeg(large)
    pipeline = Pipeline([A.RandomResizedCrop((112, 112), scale=(0.3, 1.0))])
    whole = file.decode()
    for index in range(20):
        fast = pipeline({"image": file}, 0, index)["image"]
        exact = pipeline({"image": whole}, 0, index)["image"]
        assert fast.shape == exact.shape == (112, 112, 3)
        assert psnr(fast, exact) > 30


def test_crop_without_reduction_is_exact(photo: np.ndarray) -> None:
    file, pipeline = jpeg(photo), Pipeline(large_image_augmentation(IMAGENET))
    whole = file.decode()
    for index in range(20):
        assert np.array_equal(
            pipeline({"image": file}, 0, index)["image"], pipeline({"image": whole}, 0, index)["image"]
        )


def test_evaluation_is_resize_and_centre_crop(photo: np.ndarray) -> None:
    result = Pipeline(evaluate_centre(IMAGENET))({"image": jpeg(photo), "label": 3}, 0, 0)
    small = Image.fromarray(jpeg(photo).decode()).resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(small)[16:240, 58:282]
    assert result["label"] == 3
    assert np.abs(result["image"].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (A.Resize(30, 40), (30, 40, 3)),
        (A.SmallestMaxSize(50), (50, 67, 3)),
        (A.LongestMaxSize(50), (38, 50, 3)),
        (A.RandomResizedCrop((30, 40), interpolation=cv2.INTER_CUBIC), (30, 40, 3)),
    ],
)
def test_resizing_first_has_the_size_albumentations_gives(
    photo: np.ndarray, transform: A.BasicTransform, shape: tuple[int, ...]
) -> None:
    assert Resizing.takes(transform)
    assert Pipeline([transform])({"image": jpeg(photo)}, 0, 0)["image"].shape == shape
    assert A.Compose([transform])(image=photo)["image"].shape == shape


@pytest.mark.parametrize(
    "transform",
    [A.RandomResizedCrop((30, 40), p=0.5), A.Resize(30, 40, interpolation=cv2.INTER_NEAREST), A.CenterCrop(30, 40)],
)
def test_other_beginnings_are_albumentations_own(photo: np.ndarray, transform: A.BasicTransform) -> None:
    assert not Resizing.takes(transform)
    assert Pipeline([transform])({"image": photo}, 0, 0)["image"].ndim == 3


def test_crops_have_the_configured_share_of_the_image() -> None:
    pipeline = Pipeline([A.RandomResizedCrop((200, 200), scale=(0.2, 0.4), ratio=(1.0, 1.0))])
    rows, columns = np.mgrid[0:250, 0:250].astype(np.uint8)
    position = np.stack([rows, columns, rows], axis=2)
    spans = []
    for index in range(60):
        crop = pipeline({"image": position}, 0, index)["image"].astype(int)
        spans.append(crop[-1, -1, :2] - crop[0, 0, :2] + 1)
    shares = np.prod(spans, axis=1) / 250**2
    assert 0.19 < shares.min() < 0.23
    assert 0.37 < shares.max() < 0.41


def test_streams_of_samples_differ(photo: np.ndarray) -> None:
    pipeline = Pipeline([A.RandomCrop(8, 8)], seed=3)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    crops = {pipeline({"image": noise}, epoch, index)["image"].tobytes() for epoch in range(3) for index in range(50)}
    assert len(crops) == 150


# AutoAugment leaves many images as they are.
@pytest.mark.parametrize(("augment", "least"), [(RandAugment("rand-m9-mstd0.5-inc1"), 9), (AutoAugment("v0"), 6)])
def test_timm_augments_reproducibly_and_leaves_the_global_generators_alone(
    augment: Transform, least: int, photo: np.ndarray
) -> None:
    pipeline = Pipeline([augment], seed=1)
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    results = [pipeline({"image": photo}, 0, index)["image"] for index in range(12)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(6)
    np.random.seed(6)
    for index, result in enumerate(results):
        assert np.array_equal(pipeline({"image": photo}, 0, index)["image"], result)
    assert sum(not np.array_equal(result, photo) for result in results) >= least
    assert len({result.tobytes() for result in results}) >= least


def test_randaugment_refuses_other_policies() -> None:
    with pytest.raises(ValueError, match="begin with 'rand-'"):
        RandAugment("augmix-m3")
    with pytest.raises(ValueError, match=r"policy='v1' is none of original, originalr, v0, v0r, 3a\."):
        AutoAugment("v1")


@pytest.mark.parametrize("policy", ["rand-m10-n2-inc1", "rand-m0-n2"])
def test_randaugment_survives_posterizing_to_no_bits(policy: str) -> None:
    augment = RandAugment(policy)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for seed in range(60):
        augment.set_random_state(np.random.default_rng(seed), random.Random(seed))
        assert augment.apply(image).shape == image.shape
