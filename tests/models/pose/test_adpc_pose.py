from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.compute import count, parameter_count
from models.pose.adpc_pose import ADPCPose
from models.pose.hrnet_pose import HRNetPose
from tests.library.adpc_networks import TINY, blobs, settled

POSE: dict[str, Any] = {"num_joints": 4, "stages": TINY["stages"], "pooled_dim": 6, "init_std": None}


class Chosen(ADPCPose):
    def __init__(self, masks: list[Tensor], **options: Any) -> None:
        super().__init__(**(POSE | options))
        self.masks = masks

    def unsure(self, exit: int, logits: Tensor) -> Tensor:
        return self.masks[exit]


def test_size_and_cost_are_the_published_ones() -> None:
    with torch.device("meta"):
        network = HRNetPose(stages="w32")
        assert parameter_count(HRNetPose(stages="w48")) == 63_595_696
    assert parameter_count(network) == 28_536_080
    assert round(count(network, (3, 256, 256)).macs / 2**30, 3) == 9.493


def test_skipped_pixels_change_no_heat_map() -> None:
    torch.manual_seed(0)
    masks = blobs(2, (64, 64), (0.4, 0.2, 0.05))
    network = settled(Chosen(masks))
    images = torch.randn(2, 3, 256, 256)
    with torch.no_grad():
        skipping = network(images)
        network.skip = False
        masked = network(images)
    for ours, reference in zip(skipping, masked, strict=True):
        assert ours.shape == (2, 4, 64, 64)
        assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()
    assert not torch.equal(skipping[3], skipping[2])


@pytest.mark.parametrize(
    ("low", "high", "computed"), [(0.1, None, [0, 1, 1, 1]), (None, 0.8, [1, 1, 1, 0]), (0.1, 0.8, [0, 1, 1, 0])]
)
def test_background_and_settled_pixels_are_skipped(low: float | None, high: float | None, computed: list[int]) -> None:
    network = ADPCPose(**POSE, low=low, high=high)
    heat = torch.zeros(1, 2, 1, 4)
    heat[0, 1] = torch.tensor([[0.05, 0.1, 0.8, 0.9]])
    assert network.unsure(0, heat)[0, 0].tolist() == [bool(x) for x in computed]


def test_without_thresholds_every_pixel_is_computed() -> None:
    network = ADPCPose(**POSE, low=None, high=None)
    assert not any(name.endswith("falloff") for name in network.state_dict())
    assert [tuple(x.shape) for x in network(torch.randn(2, 3, 64, 64))] == [(2, 4, 16, 16)] * 4


def test_every_parameter_gets_a_gradient() -> None:
    network = ADPCPose(**POSE, low=-1.0).train()
    torch.stack([x.square().mean() for x in network(torch.randn(2, 3, 64, 64))]).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"low=0.9 must be less than high=0.5"):
        ADPCPose(**POSE, low=0.9, high=0.5)
    with pytest.raises(ValueError, match="pooled_dim=0"):
        ADPCPose(**(POSE | {"pooled_dim": 0}))
