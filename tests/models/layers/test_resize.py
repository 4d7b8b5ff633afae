"""Conventions of resizing, by ramps and stripes that show where points are read."""

import pytest
import torch
from torch import Tensor

from models.layers.resize import Mode, resize


def ramp(length: int) -> Tensor:
    return torch.arange(float(length)).expand(1, 1, 3, length)


@pytest.mark.parametrize("mode", ["centres", "corners", "antialiased", "official"])
def test_maps_of_the_size_are_returned_as_they_are(mode: Mode) -> None:
    maps = ramp(5)
    assert resize(maps, [3, 5], mode) is maps


@pytest.mark.parametrize(
    ("mode", "columns"),
    [
        ("centres", [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]),
        ("corners", [3 * i / 7 for i in range(8)]),
        ("antialiased", [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]),
        ("official", [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]),
    ],
)
def test_points_of_a_larger_map(mode: Mode, columns: list[float]) -> None:
    larger = resize(ramp(4), (6, 8), mode)
    torch.testing.assert_close(larger, torch.tensor(columns).expand(1, 1, 6, 8))


# Averaged over eight columns around the second, by a triangle.
@pytest.mark.parametrize(
    ("mode", "first"), [("centres", 1.5), ("corners", 0), ("antialiased", 6.625 / 3.5), ("official", 0)]
)
def test_points_of_a_smaller_map(mode: Mode, first: float) -> None:
    smaller = resize(ramp(8), (3, 2), mode)
    assert smaller[0, 0, 0, 0].item() == pytest.approx(first)


@pytest.mark.parametrize("size", [(20, 23), (9, 31), (16, 16)])
def test_official_resize_has_no_half_pixel_shift(size: tuple[int, int]) -> None:
    columns = resize(ramp(16), size, "official")[0, 0, 0]
    torch.testing.assert_close(columns, (torch.arange(size[1]) * 16 / size[1]).clamp(max=15.0))


def test_antialiased_resize_averages() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 1, 16, 16)
    inside = resize(stripes, (4, 4), "antialiased")[0, 0, :, 1:-1]
    assert (inside - 0.5).abs().max() < 0.1
    assert (resize(stripes, (4, 4), "official") == 0).all()
