"""Angles that float32 cosines do not know."""

import math

import pytest
import torch

from models.spherical_motion import angular_update, block_dot, turned, unit_gradient
from models.spherical_motion.geometry import angle_of, turn_parts


@pytest.mark.parametrize("angle", [1e-6, 1e-4, 1e-2, 1.0, 3.0])
@pytest.mark.parametrize("length", [0.9, 1.0, 1.2])
def test_angles_and_lengths_are_told_apart(angle: float, length: float) -> None:
    generator = torch.Generator().manual_seed(0)
    w, across = torch.randn(2, 6, 50, dtype=torch.float64, generator=generator)
    across -= (across * w).sum(1, keepdim=True) / w.square().sum(1, keepdim=True) * w
    across *= (w.norm(dim=1) / across.norm(dim=1))[:, None]
    after = length * (math.cos(angle) * w + math.sin(angle) * across)
    assert angular_update(w, after, 6).tolist() == pytest.approx([angle] * 6, rel=1e-9)
    assert angular_update(w, after).item() == pytest.approx(angle, rel=1e-9)
    # What float32 rounds of the weights moves small angles; nothing else does.
    rounded = angular_update(w.float().double(), after.float().double(), 6)
    torch.testing.assert_close(angular_update(w.float(), after.float(), 6).double(), rounded, rtol=1e-4, atol=1e-9)


def test_a_layer_turns_where_its_filters_only_grow() -> None:
    before = torch.eye(2)
    after = torch.diag(torch.tensor([1.0, 3.0]))
    layer, filters = angle_of(*turn_parts([before], [after], 2))
    assert filters.tolist() == [0, 0]
    assert layer.item() == pytest.approx(math.acos(4 / math.sqrt(20)))
    torch.testing.assert_close(angular_update(before, after)[0], layer)


def test_a_weight_of_several_tensors_is_one_vector() -> None:
    w, after = torch.randn(2, 4, 3, 3, 3), torch.randn(2, 4)
    flat = [torch.cat([a.flatten(1), b[:, None]], 1) for a, b in zip(w, after, strict=True)]
    torch.testing.assert_close(
        angular_update([w[0], after[0]], [w[1], after[1]], 4), angular_update(flat[0], flat[1], 4)
    )
    torch.testing.assert_close(block_dot([w[0], after[0]], [w[1], after[1]])[0], (flat[0] * flat[1]).sum())
    torch.testing.assert_close(unit_gradient([w[0], after[0]], [w[1], after[1]])[0], flat[0].norm() * flat[1].norm())


def test_a_step_is_turned_to_an_angle_at_the_same_length() -> None:
    before, after = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    after[1] = 2 * before[1]
    (now,) = turned([before], [after], 0.02, 4)
    angles = angular_update(before, now, 4)
    assert angles.tolist() == pytest.approx([0.02, 0, 0.02, 0.02], abs=1e-7)
    torch.testing.assert_close(now.norm(dim=1), before.norm(dim=1))
    assert torch.equal(now[1], before[1])
    # It lies in the plane of the weight and the step, on the step's side.
    plane = torch.stack([before[0], after[0]]).double()
    rest = now[0].double() - plane.T @ torch.linalg.lstsq(plane.T, now[0].double()[:, None]).solution[:, 0]
    assert rest.norm() < 1e-6
    assert angular_update(now[0], after[0]) < angular_update(before[0], after[0])
