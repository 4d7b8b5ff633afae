from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.transforms.pose import STRIDE, crop_matrix, heatmap_targets, transform_points
from models.pose.decoding import decode, mirror_back, peaks


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_joints_survive_the_way_to_heat_maps_and_back(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    centre, scale = np.array([210.0, 145.0]), 0.9
    matrix = crop_matrix(centre, scale, 0.0, size)
    inside = random.uniform(6, np.array(size[::-1]) - 6, (16, 2))
    joints = transform_points(inside, np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2])
    maps, _ = heatmap_targets(inside, np.ones(16), (size[0] // STRIDE, size[1] // STRIDE), STRIDE, 2.0)
    found, scores = decode(torch.from_numpy(maps)[None], torch.tensor([[210.0, 145.0]]), torch.tensor([scale]))
    # Half a cell in pixels of the image, and nothing beside: both neighbours of a peak are equally hot.
    assert np.abs(found[0].numpy() - joints).max() <= STRIDE / 2 * 200 * scale / size[1] + 1e-3
    torch.testing.assert_close(scores, torch.ones(1, 16))


def test_a_peak_moves_towards_the_hotter_neighbour_unless_it_is_at_the_border() -> None:
    maps = torch.zeros(1, 3, 8, 8)
    maps[0, 0, 4, 3], maps[0, 0, 4, 4], maps[0, 0, 3, 3] = 1.0, 0.5, 0.25
    maps[0, 1, 4, 1], maps[0, 1, 4, 2] = 1.0, 0.5
    # A scale of 8 / 200 makes a cell a pixel, and the centre is the middle of the map.
    found, scores = decode(maps, torch.tensor([[4.0, 4.0]]), torch.tensor([8 / 200]))
    torch.testing.assert_close(found[0], torch.tensor([[3.25, 3.75], [1.0, 4.0], [0.0, 0.0]]))
    assert scores.tolist() == [[1.0, 1.0, 0.0]]


def test_half_precision_is_decoded_in_float32() -> None:
    maps = torch.rand(2, 3, 16, 16).bfloat16()
    found, scores = decode(maps, torch.full((2, 2), 8.0), torch.full((2,), 0.08))
    assert found.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(peaks(maps)[0], peaks(maps.float())[0])


def test_maps_of_a_mirrored_image_come_back() -> None:
    maps, mirrored = torch.rand(2, 3, 4, 5), [1, 0, 2]
    seen_in_mirror = maps[:, mirrored].flip(3)
    torch.testing.assert_close(mirror_back(seen_in_mirror, mirrored, shift=False), maps)
    shifted = mirror_back(seen_in_mirror, mirrored)
    torch.testing.assert_close(shifted[..., 1:], maps[..., :-1])
    torch.testing.assert_close(shifted[..., 0], maps[..., 0])
