from typing import Any

import pytest
import timm
import torch
from torch import nn

import models  # noqa: F401 (registers the backbones)
from models.backbones.size_divisor import size_divisor

SWIN: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("resnet10t", {}, 32),
    ("resnet10t", {"out_indices": (1, 2)}, 8),
    ("container_light", {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": 2}, 32),
    ("convnext_tiny_dense", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}, 32),
    ("convnext_isotropic_small", {"depth": 3, "dim": 8}, 16),
    ("plain_conv", {}, 8),
    ("separable_tiny", {}, 8),
    ("shufflenet_v2_x0_5_drconv", {}, 32),
    ("swin_tiny_dense", SWIN, 32),
    ("swin_tiny_patch4_window7_224", SWIN | {"strict_img_size": False}, 32),
    ("vit_tiny_patch16_224", {"depth": 3, "dynamic_img_size": True}, 16),
    ("maxvit_rmlp_pico_rw_256", {}, 256),
]


@pytest.mark.parametrize(("name", "options", "divisor"), CASES)
def test_every_map_is_as_fine_as_told(name: str, options: dict[str, Any], divisor: int) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, features_only=True, **options).eval()
        assert size_divisor(network) == divisor
        maps = network(torch.empty(1, 3, 2 * divisor, 3 * divisor))
    for x, channels, reduction in zip(
        maps, network.feature_info.channels(), network.feature_info.reduction(), strict=True
    ):
        assert x.numel() * reduction**2 == channels * 6 * divisor**2


def test_windows_count() -> None:
    with torch.device("meta"):
        network = timm.create_model("maxvit_rmlp_pico_rw_256", features_only=True).eval()
        with pytest.raises(AssertionError, match="divisible by window"):
            network(torch.empty(1, 3, 288, 288))


def test_a_backbone_may_state_it() -> None:
    network = nn.Identity()
    network.size_divisor = 7
    assert size_divisor(network) == 7
