from __future__ import annotations

import pytest
import torch

from models.compute import parameter_count
from models.mistakes import Mistake
from models.pose import SimpleBaseline


def test_size_is_the_published_one() -> None:
    """Table 3 of arXiv 1902.09212, which compares with it: ResNet-50, COCO's 17 joints, 34.0 M parameters."""
    with torch.device("meta"):
        network = SimpleBaseline(17, "resnet50")
    assert round(parameter_count(network) / 1e6, 1) == 34.0


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0"])
def test_cells_are_of_four_pixels(backbone: str) -> None:
    network = SimpleBaseline(5, backbone, hidden_dim=8).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 96)).shape == (2, 5, 16, 24)
    assert network.get_classifier() is network.head


def test_what_makes_no_network_is_refused() -> None:
    with pytest.raises(Mistake, match="num_joints=0"):
        SimpleBaseline(0)
    with (
        torch.device("meta"),
        pytest.raises(Mistake, match=r"the coarsest map of .* has a stride of 14: it must be 4 times a power of two"),
    ):
        SimpleBaseline(5, "vit_small_patch14_dinov2")
