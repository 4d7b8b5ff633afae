"""Windows, scales and padding, against what they are defined as."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.segmenters.inference import multi_scale, padded, sliding_window, unpadded, windows

SIDE = st.integers(1, 40)


@given(size=st.tuples(SIDE, SIDE), crop=st.tuples(SIDE, SIDE), stride=st.tuples(SIDE, SIDE))
@settings(max_examples=60, deadline=None)
def test_windows_cover_the_image(size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]) -> None:
    stride = (min(stride[0], crop[0]), min(stride[1], crop[1]))
    found = windows(size, crop, stride)
    seen = torch.zeros(size)
    for row, column in found:
        assert seen[row, column].shape == (min(size[0], crop[0]), min(size[1], crop[1]))
        seen[row, column] += 1
    assert seen.min() >= 1
    rows, columns = (max(n - w + s - 1, 0) // s + 1 for n, w, s in zip(size, crop, stride, strict=True))
    assert len(found) == rows * columns


def test_windows_must_have_a_size() -> None:
    with pytest.raises(ValueError, match="positive crop and stride"):
        windows((8, 8), (4, 0), (4, 4))


def test_overlapping_windows_are_averaged() -> None:
    images = torch.randn(2, 3, 9, 14)
    calls = []

    def predict(window: Tensor) -> list[Tensor]:
        calls.append(window.shape[-2:])
        return [window, window + len(calls)]

    same, numbered = sliding_window(predict, images, (9, 8), (9, 4))
    torch.testing.assert_close(same, images)
    # Three windows, of columns 0-7, 4-11 and 6-13.
    number = torch.tensor([1.0] * 4 + [1.5] * 2 + [2.0] * 2 + [2.5] * 4 + [3.0] * 2)
    torch.testing.assert_close(numbered - images, number.expand_as(images), rtol=0, atol=1e-5)


def test_softmax_is_averaged_over_scales_and_mirrored_images() -> None:
    images = torch.randn(1, 4, 8, 12)

    def predict(view: Tensor) -> list[Tensor]:
        # A network that mirroring changes.
        return [view * torch.linspace(0, 1, view.shape[-1])]

    (actual,) = multi_scale(predict, images, [0.5, 1.0])
    small = F.interpolate(images, size=(4, 6), mode="bilinear")
    views = []
    for view in (small, images):
        for flip in (False, True):
            logits = predict(view.flip(-1) if flip else view)[0]
            logits = logits.flip(-1) if flip else logits
            views.append(F.interpolate(logits, size=(8, 12), mode="bilinear").softmax(1))
    torch.testing.assert_close(actual, torch.stack(views).mean(0))
    torch.testing.assert_close(actual.sum(1), torch.ones(1, 8, 12))
    (single,) = multi_scale(predict, images, [1.0], flip=False)
    torch.testing.assert_close(single, predict(images)[0].softmax(1))


def test_scales_are_run_in_windows() -> None:
    sizes = []

    def predict(view: Tensor) -> list[Tensor]:
        sizes.append(tuple(view.shape[-2:]))
        return [view]

    images = torch.randn(1, 3, 8, 16)
    multi_scale(predict, images, [0.5, 2.0], flip=False, crop=(8, 16))
    assert sizes == [(4, 8)] + [(8, 16)] * 4
    sizes.clear()
    multi_scale(predict, images, [1.0, 2.0], flip=False, average="exp_logits", crop=(4, 16), stride=(4, 16))
    # Published: windows above scale 1 only.
    assert sizes == [(8, 16)] + [(4, 16)] * 8


@pytest.mark.parametrize("size", [(32, 64), (33, 50), (7, 5)])
def test_padding_is_undone(size: tuple[int, int]) -> None:
    images = torch.randn(1, 3, *size)
    larger = padded(images)
    assert all(side % 32 == 0 for side in larger.shape[-2:])
    assert larger[..., size[0] :, :].eq(0).all()
    assert torch.equal(unpadded(larger, size), images)
    coarse = F.interpolate(larger, scale_factor=0.25)
    assert unpadded(coarse, size).shape == images.shape
