from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from datamodules import DataError, Digits, ImageFolder, ImageNet, PackedImages, Pixels

IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = Pixels((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "bgr", 255.0)
RGB = np.array([200.0, 100.0, 50.0])


def seen(data: Any) -> torch.Tensor:
    """What a network is given of a pixel."""
    bytes_ = torch.tensor(RGB, dtype=torch.uint8).view(1, 3, 1, 1)
    image: torch.Tensor = data.on_after_batch_transfer({"image": bytes_}, 0)["image"]
    return image.flatten().double()


def test_bytes_are_put_in_order_scaled_and_normalised() -> None:
    expected = {
        IMAGENET: (RGB / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        CAFFE: RGB[::-1] - [103.53, 116.28, 123.675],
        Pixels((0.1, 0.2, 0.3), (1.0, 2.0, 4.0), "bgr"): (RGB[::-1] / 255 - [0.1, 0.2, 0.3]) / [1, 2, 4],
        Pixels((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), scale=255.0): (RGB - [1, 2, 3]) / [4, 5, 6],
    }
    for pixels, values in expected.items():
        torch.testing.assert_close(seen(Digits(pixels=pixels)), torch.from_numpy(values), rtol=1e-5, atol=1e-5)
    images = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for pixels in expected:
        assert np.array_equal(pixels.picture(pixels.normalised(images)[1]), images[1].permute(1, 2, 0).numpy())


def test_the_datas_own_look_is_bit_for_bit_what_it_was() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    for data in (Digits(), ImageFolder("none"), PackedImages("none")):
        mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
        before = images.float() * (1 / (255 * std)) - mean / std
        assert torch.equal(data.on_after_batch_transfer({"image": images}, 0)["image"], before)


def test_it_is_said_in_a_line() -> None:
    assert str(IMAGENET) == "RGB 0..1 less (0.485, 0.456, 0.406) over (0.229, 0.224, 0.225)"
    assert str(CAFFE) == "BGR 0..255 less (103.53, 116.28, 123.675)"
    halves = Pixels((0.0,) * 3, (0.5,) * 3, size=(240, 224), interpolation="bicubic")
    assert str(halves) == "RGB 0..1 over (0.5, 0.5, 0.5), 240x224, bicubic"


def test_what_is_stated_comes_back_from_plain_values() -> None:
    whole = Pixels((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "bgr", 255.0, (224, 240), "bicubic", 0.9)
    for pixels in (IMAGENET, CAFFE, whole):
        assert Pixels.stated(json.loads(json.dumps(pixels.plain()))) == pixels
    assert "size" not in IMAGENET.plain()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [0.5, 0.5]}, "pixels.mean is (0.5, 0.5): three numbers"),
        ({"mean": 0.5}, "pixels.mean is 0.5: three numbers"),
        ({"mean": [0.5, 0.5, float("nan")]}, "pixels.mean is (0.5, 0.5, nan): three numbers"),
        ({"std": ["a", 1, 1]}, "pixels.std is ('a', 1, 1): three numbers"),
        ({"std": [1, 0, 1]}, "pixels.std is (1, 0, 1): it must be positive"),
        ({"order": "gbr"}, "pixels.order is 'gbr': it must be 'rgb' or 'bgr'"),
        ({"scale": 16}, "pixels.scale is 16: it must be 1 or 255"),
        ({"scale": True}, "pixels.scale is True"),
        ({"interpolation": "lanczos"}, "pixels.interpolation is 'lanczos': it must be 'nearest' or 'bilinear'"),
        ({"size": [224]}, "pixels.size is (224): height and width are from 1 to 4096"),
        ({"size": [10**6, 10**6]}, "pixels.size is (1e+06, 1e+06)"),
        ({"crop": 1e-6}, "pixels.crop is 1e-06: a share from 0.1 to 2"),
        ({"colour": "grey"}, "has mean and std, and may have"),
    ],
)
def test_what_cannot_be_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        Pixels.stated({"mean": [0.5] * 3, "std": [0.5] * 3} | change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    for nothing in (None, "text", [1], {"mean": [0.5] * 3}):
        with pytest.raises(DataError, match="mean and std"):
            Pixels.stated(nothing)


@pytest.mark.parametrize(
    ("name", "least", "most", "below", "above"),
    [("size", [1, 1], [4096, 4096], [0, 1], [1, 4097]), ("crop", 0.1, 2.0, 0.0999, 2.0001)],
)
def test_the_ends_of_what_can_be(name: str, least: Any, most: Any, below: Any, above: Any) -> None:
    known = {"mean": [0.5] * 3, "std": [0.5] * 3}
    for value in (least, most):
        assert Pixels.stated(known | {name: value}).plain()[name] == value
    for value in (below, above):
        with pytest.raises(DataError, match=rf"pixels\.{name}"):
            Pixels.stated(known | {name: value})


def test_normalised_values_agree_to_a_hundredth() -> None:
    # Black becomes -mean and white 1 - mean, of which a hundredth counts, or a part of a hundred of what is above 1.
    ones = (1.0,) * 3
    for mean, near, far in ((0.5, 0.5099, 0.5101), (0.5, 0.4901, 0.4899), (5.0, 5.0395, 5.0405)):
        mine = Pixels((mean,) * 3, ones)
        for other, same in ((near, True), (far, False)):
            assert mine.agree(Pixels((mean, mean, other), ones)) is same
    # White alone: at 1 / std - mean / std.
    assert Pixels((0.0,) * 3, ones).agree(Pixels((0.0,) * 3, (1.0, 1.0, 1.0099)))
    assert not Pixels((0.0,) * 3, ones).agree(Pixels((0.0,) * 3, (1.0, 1.0, 1.0102)))


def test_the_size_of_images_is_left_out_of_their_values() -> None:
    whole = Pixels((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "bgr", 255.0, (224, 240), "bicubic", 0.9)
    assert whole.of_values_alone() == Pixels((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "bgr", 255.0)


def test_the_same_look_in_other_words_agrees() -> None:
    bytes_ = Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), scale=255.0)
    inception = Pixels((127.0,) * 3, (128.0,) * 3, scale=255.0)
    assert IMAGENET.agree(bytes_)
    assert bytes_.agree(IMAGENET)
    assert inception.agree(Pixels((0.5,) * 3, (0.5,) * 3))
    assert Pixels((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)).agree(
        Pixels((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))
    )
    assert not IMAGENET.agree(inception)
    assert not IMAGENET.agree(CAFFE)
    reverse = Pixels(IMAGENET.mean[::-1], IMAGENET.std[::-1], "bgr")  # type: ignore[arg-type]
    assert not IMAGENET.agree(reverse)


def test_weights_are_followed_unless_the_config_says_otherwise() -> None:
    data = Digits()
    own = seen(data)
    assert data.pixels == Pixels(Digits.mean, Digits.std)
    data.adopt(CAFFE)
    torch.testing.assert_close(seen(data), torch.from_numpy(RGB[::-1] - [103.53, 116.28, 123.675]))
    assert not torch.equal(seen(data), own)
    told = Digits(pixels=IMAGENET)
    told.adopt(Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), scale=255.0))
    with pytest.raises(DataError, match=r"the config says RGB 0\.\.1 less \(0\.485"):
        told.adopt(CAFFE)
    assert told.pixels == IMAGENET


def test_mean_and_std_of_packed_images_are_what_the_config_says() -> None:
    halves = (0.5, 0.5, 0.5)
    PackedImages("none").adopt(CAFFE)
    data = PackedImages("none", mean=halves, std=halves)
    assert data.pixels == Pixels(halves, halves)
    with pytest.raises(DataError):
        data.adopt(CAFFE)


@pytest.mark.parametrize("kind", [ImageNet, ImageFolder])
def test_photographs_have_the_size_that_weights_state(kind: Any) -> None:
    data = kind(Path("none"))
    resize, crop = data.eval_transforms
    assert (resize.max_size, resize.interpolation, crop.height, crop.width) == (256, cv2.INTER_LINEAR, 224, 224)
    stated = Pixels((0.5,) * 3, (0.5,) * 3, size=(384, 300), interpolation="bicubic", crop=0.95)
    data.adopt(stated)
    resize, crop = data.eval_transforms
    assert crop.pad_if_needed
    assert (resize.max_size, resize.interpolation, crop.height, crop.width) == (315, cv2.INTER_CUBIC, 384, 300)
    assert data.train_transforms[0].size == (384, 300)
    # A config that names transforms keeps them.
    named = kind(Path("none"), eval_transforms=[A.Resize(32, 32)])
    named.adopt(stated)
    assert [type(each) for each in named.eval_transforms] == [A.Resize]
    assert named.train_transforms[0].size == (224, 224)
