import pytest
import timm
import torch

import models  # noqa: F401 (registers the backbones)
from models.official import LayoutError
from models.official.convnext import LAYOUT

SMALL = {"depths": (1, 2, 1, 1), "dims": (4, 8, 8, 8), "num_classes": 3}
NETWORKS = {
    "convnext_tiny": SMALL,
    "convnext_tiny_dense": {**SMALL, "num_classes": 0, "features_only": True, "out_indices": (1, 2)},
    "convnext_base": {**SMALL, "ls_init_value": None},
    "convnext_large": {**SMALL, "num_classes": 0},
    "convnext_isotropic_small": {"depth": 2, "dim": 8, "num_classes": 3},
    "convnext_isotropic_large": {"depth": 2, "dim": 8, "num_classes": 3},
}


def official(name: str = "convnext_tiny") -> dict[str, torch.Tensor]:
    return LAYOUT.to_official(timm.create_model(name, **NETWORKS[name]).state_dict())


def test_official_names() -> None:
    names = set(official())
    assert {"downsample_layers.0.0.weight", "downsample_layers.3.1.bias", "stages.1.1.pwconv2.weight"} <= names
    assert {"stages.0.0.gamma", "norm.weight", "head.bias"} <= names
    isotropic = set(official("convnext_isotropic_small"))
    assert {"stem.weight", "blocks.1.dwconv.bias", "norm.bias", "head.weight"} <= isotropic
    assert "blocks.0.gamma" not in isotropic
    dense = set(official("convnext_tiny_dense"))
    assert {"norm1.weight", "norm2.bias"} <= dense
    assert not {name for name in dense if name.startswith(("norm0", "norm.", "head", "downsample_layers.3"))}


def test_pointwise_convolutions_become_linear_layers() -> None:
    linear = timm.create_model("convnext_tiny", **SMALL)
    conv = timm.create_model("convnext_tiny", conv_mlp=True, **SMALL)
    assert conv.stages[0].blocks[0].mlp.fc1.weight.shape == (16, 4, 1, 1)
    official = [LAYOUT.to_official(network.state_dict()) for network in (linear, conv)]
    assert all(official[1][name].shape == value.shape for name, value in official[0].items())


def test_backbone_of_a_detector() -> None:
    dense = official("convnext_tiny_dense")
    detector = {f"backbone.{name}": value for name, value in dense.items()}
    assert LAYOUT.matches(detector)
    assert list(LAYOUT.to_ours(detector)) == list(LAYOUT.to_ours(dense))
    with pytest.warns(UserWarning, match=r"left out \(all but the backbone\): neck\.a, rpn_head \(2 tensors\)"):
        state = LAYOUT.to_ours(detector | dict.fromkeys(["neck.a", "rpn_head.a", "rpn_head.b"], torch.ones(1)))
    assert list(state) == list(LAYOUT.to_ours(dense))
    with pytest.raises(LayoutError, match=r"unknown teacher\.weight"):
        LAYOUT.to_ours(detector | {"teacher.weight": torch.ones(1)})


def test_half_a_head_is_not_a_head() -> None:
    state = official()
    del state["head.bias"]
    with pytest.raises(LayoutError, match=r"missing head.bias$"):
        LAYOUT.to_ours(state)
