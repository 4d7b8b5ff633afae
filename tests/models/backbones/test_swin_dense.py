from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters

import models  # noqa: F401 (registers the backbones)

SMALL: dict[str, Any] = {"embed_dim": 8, "depths": (1, 2, 1, 2), "num_heads": (1, 2, 2, 4), "window_size": 3}


def swin(**changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("swin_tiny_dense", **SMALL | {"features_only": True} | changes)


def test_maps_of_whole_windows_are_those_of_timm() -> None:
    network = swin(out_indices=(0, 1)).eval()
    trunk = timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, strict_img_size=False, always_partition=True, **SMALL
    ).eval()
    weights = {name.replace("layers.", "layers_"): value for name, value in network.state_dict().items()}
    trunk.load_state_dict({name: weights.get(name, value) for name, value in trunk.state_dict().items()})
    image = torch.randn(1, 3, 48, 96)
    for i, (ours, theirs) in enumerate(zip(network(image), trunk(image)[:2], strict=True)):
        expected = network.get_submodule(f"norm{i}")(theirs).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, expected)


def test_any_size_goes() -> None:
    network = swin(out_indices=(-3, -2, -1)).eval()
    shapes = [tuple(x.shape) for x in network(torch.randn(2, 3, 50, 70))]
    assert shapes == [(2, 16, 7, 9), (2, 32, 4, 5), (2, 64, 2, 3)]
    assert network.feature_info.channels() == [16, 32, 64]
    assert network.feature_info.reduction() == [8, 16, 32]


def test_recomputed_activations_give_the_same_gradients() -> None:
    results = []
    for recompute in (False, True):
        network = swin(drop_path_rate=0.0)
        network.set_grad_checkpointing(recompute)
        torch.stack([x.square().mean() for x in network(torch.ones(1, 3, 50, 70))]).sum().backward()
        results.append([parameter.grad for parameter in network.parameters()])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_layers_are_in_order() -> None:
    network = swin(out_indices=(1, 3))
    layers = group_parameters(network, network.group_matcher(), reverse=True)
    first, last = "layers.{}.blocks.0.norm1.weight".format, "layers.{}.blocks.1.norm1.weight".format
    names = ["patch_embed.proj.weight", first(0), first(1), last(1), first(2), first(3), last(3), "norm1.weight"]
    assert [layers[name] for name in names] == list(range(8))
    assert layers["layers.2.downsample.norm.weight"] == layers[first(2)]


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="increasing stages between 0 and 3"):
        swin(out_indices=(2, 1))
