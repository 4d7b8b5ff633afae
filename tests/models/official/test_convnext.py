import pytest
import timm
import torch

import models  # noqa: F401 (registers the backbones)
from models.official import LayoutError
from models.official.convnext import matches, matches_ours, to_official, to_ours

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
    return to_official(timm.create_model(name, **NETWORKS[name]).state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name: str) -> None:
    ours = timm.create_model(name, **NETWORKS[name]).state_dict()
    theirs = to_official(ours)
    assert matches(theirs)
    assert not matches(ours)
    assert matches_ours(ours)
    assert not matches_ours(theirs)
    back = to_ours(theirs)
    assert list(back) == list(ours)
    assert all(torch.equal(value, back[key]) for key, value in ours.items())


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
    shapes = [{name: value.shape for name, value in to_official(net.state_dict()).items()} for net in (linear, conv)]
    assert shapes[0] == shapes[1]


def test_backbone_of_a_detector() -> None:
    dense = official("convnext_tiny_dense")
    detector = {f"backbone.{name}": value for name, value in dense.items()}
    assert matches(detector)
    assert list(to_ours(detector)) == list(to_ours(dense))
    with pytest.warns(UserWarning, match=r"left out: neck \(1 tensors\), rpn_head \(2 tensors\)"):
        state = to_ours(detector | dict.fromkeys(["neck.a", "rpn_head.a", "rpn_head.b"], torch.ones(1)))
    assert list(state) == list(to_ours(dense))
    with pytest.raises(LayoutError, match=r"unknown teacher\.weight"):
        to_ours(detector | {"teacher.weight": torch.ones(1)})


@pytest.mark.parametrize("name", NETWORKS)
def test_no_key_may_be_missing_or_unknown(name: str) -> None:
    state = official(name)
    for key in state:
        if key.startswith("head."):
            continue
        with pytest.raises(LayoutError, match=f"missing .*{key}"):
            to_ours({other: value for other, value in state.items() if other != key})
    for key in ("stages.0.0.grn.weight", "downsample_layers.0.2.weight", "head.fc.bias.x", "optimizer"):
        with pytest.raises(LayoutError, match=f"unknown {key}"):
            to_ours(state | {key: torch.ones(1)})
    with pytest.raises(LayoutError, match="unknown other"):
        to_official(to_ours(state) | {"other": torch.ones(1)})


def test_half_a_head_is_not_a_head() -> None:
    state = official()
    del state["head.bias"]
    with pytest.raises(LayoutError, match=r"missing head.bias$"):
        to_ours(state)
