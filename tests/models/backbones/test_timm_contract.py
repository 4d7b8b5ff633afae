"""What timm's own tests ask of every network that timm knows, asked of every network that is ours.

Networks are as deep and wide as they have to be, and images as large as their configs say. TorchScript and FX are left
out: what a dynamic network runs depends on its input.
"""

import math
import re
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from timm.layers import Format
from timm.models import get_pretrained_cfg, group_parameters
from torch import Tensor, nn

import models  # noqa: F401 (registers the backbones)

NAMES = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("models.backbones.")]
# One of those that differ in nothing but size.
KINDS = list({re.sub(r"_(tiny|small|base|large|xlarge)|\d\d+", "", name): name for name in reversed(NAMES)}.values())
CONVNEXT: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
RESNET: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}
# Of each module; the hosts of dynamic kernels that are no ResNets have no smaller sizes.
SMALL: dict[str, dict[str, Any]] = {
    "autoformer": {"embed_dim": 12, "num_heads": (1, 2, 1), "mlp_ratios": (2, 2, 3), "head_dim": 8},
    "condconv": {"num_experts": 2},
    "container": {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": 2},
    "container_pam": {"embed_dim": 12, "depth": 3, "num_heads": 3},
    "convnext_dense": CONVNEXT,
    "convnext_isotropic": {"depth": 3, "dim": 8},
    "convnext_ladder": CONVNEXT,
    "deit_dge": {"embed_dim": 12, "depth": 3, "num_heads": 3},
    "dynamic_conv": {"num_kernels": 2},
    "narrow_resnet": {"layers": (1, 1, 1, 1), "width": 8},
    "pvt": {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1)},
    "resnet_msra": RESNET | {"stem_chans": 8},
    "resnet_pruned": RESNET | {"inner": [(4, 4)] * 4},
    "shufflenet_drconv": {"channels": (8, 16, 24, 32, 40), "depths": (1, 2, 1)},
    "swin_dense": {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2)},
    "vit_dino": {"embed_dim": 12, "depth": 3, "num_heads": 3},
}


def build(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    module = timm.model_entrypoint(name).__module__.split(".")[-1]
    host = RESNET if name in ("condconv_resnet50", "dy_resnet10", "dy_resnet18", "dy_resnet50") else {}
    return timm.create_model(name, **SMALL.get(module, {}), **host, **options)


def images(network: nn.Module, in_chans: int = 3) -> Tensor:
    cfg = network.default_cfg
    size = cfg["input_size"][1:] if cfg["fixed_input_size"] else (64, 64)
    return torch.randn(2, in_chans, *size)


def channels_first(network: nn.Module, maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2) if getattr(network, "output_fmt", Format.NCHW) == Format.NHWC else maps


def is_transformer(network: nn.Module) -> bool:
    """Whether what is pooled are tokens in a row."""
    return hasattr(network, "num_prefix_tokens")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def without_values(name: str) -> nn.Module:
    with torch.device("meta"):
        return build(name)


@pytest.fixture(scope="module")
def of_seven_classes(name: str) -> nn.Module:
    return build(name, num_classes=7)


@pytest.fixture
def network(of_seven_classes: nn.Module) -> nn.Module:
    return deepcopy(of_seven_classes).eval()


def test_config_is_complete_and_true(name: str, without_values: nn.Module) -> None:
    network, cfg, registered = without_values, without_values.pretrained_cfg, get_pretrained_cfg(name)
    assert network.default_cfg is cfg
    assert registered is not None
    for entry in ("input_size", "pool_size", "num_classes", "mean", "std", "interpolation", "crop_pct"):
        assert cfg[entry] == getattr(registered, entry), entry
        # A sequence of tokens has no size.
        assert cfg[entry] or (entry == "pool_size" and is_transformer(network)), entry
    assert cfg["num_classes"] == network.num_classes
    assert network.get_parameter(f"{cfg['first_conv']}.weight").shape[1] == cfg["input_size"][0] == network.in_chans
    classifier = network.get_parameter(f"{cfg['classifier']}.weight")
    assert any(classifier is parameter for parameter in network.get_classifier().parameters())


def test_layers_are_in_order(without_values: nn.Module) -> None:
    network, cfg = without_values, without_values.pretrained_cfg
    last = []
    for coarse in (False, True):
        layers = group_parameters(network, network.group_matcher(coarse=coarse), reverse=True)
        assert layers.keys() == dict(network.named_parameters()).keys()
        assert layers[f"{cfg['first_conv']}.weight"] == 0
        last.append(max(layers.values()))
        assert layers[f"{cfg['classifier']}.weight"] == last[-1]
    assert last[0] >= last[1] >= 3
    exempt = network.no_weight_decay() if hasattr(network, "no_weight_decay") else set()
    assert set(exempt) <= layers.keys()


@torch.no_grad()
def test_the_last_map_is_what_is_pooled(network: nn.Module) -> None:
    cfg = network.default_cfg
    features = network.forward_features(torch.randn(1, *cfg["input_size"]))
    if is_transformer(network):
        reduction = network.feature_info[-1]["reduction"]
        tokens = network.num_prefix_tokens + math.prod(side // reduction for side in cfg["input_size"][1:])
        assert features.shape == (1, tokens, network.num_features)
        return
    assert channels_first(network, features).shape == (1, network.num_features, *cfg["pool_size"])


@torch.no_grad()
def test_features_and_head_make_the_logits(network: nn.Module) -> None:
    x = images(network)
    features = network.forward_features(x)
    pooled = network.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, network.head_hidden_size)
    logits = network(x)
    assert logits.shape == (2, network.num_classes) == (2, 7)
    torch.testing.assert_close(network.forward_head(features), logits)
    network.reset_classifier(5)
    assert network(x).shape == (2, network.num_classes) == (2, 5)
    network.reset_classifier(0)
    assert network.num_classes == 0
    torch.testing.assert_close(network(x), pooled)
    # MobileNetV3 has a layer between pooling and classifier.
    if network.num_features == network.head_hidden_size:
        network.reset_classifier(0, "")
        assert network(x).shape == features.shape


def test_every_parameter_learns(network: nn.Module) -> None:
    logits = network.train()(images(network))
    assert logits.isfinite().all()
    logits.mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_change_nothing(kind: str) -> None:
    network = build(kind, num_classes=7).eval()
    x = images(network)
    results = []
    for recompute in (False, True):
        network.zero_grad()
        network.set_grad_checkpointing(recompute)
        logits = network(x)
        logits.square().sum().backward()
        results.append([logits.detach(), *(parameter.grad for parameter in network.parameters())])
    for kept, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, kept)


@torch.no_grad()
def test_feature_maps_are_as_announced(name: str) -> None:
    network = build(name, features_only=True, in_chans=1).eval()
    info = network.feature_info
    assert len(info.channels()) >= 3
    assert network.in_chans == 1
    x = images(network, in_chans=1)
    assert [tuple(channels_first(network, each).shape) for each in network(x)] == [
        (2, channels, *(math.ceil(side / reduction) for side in x.shape[2:]))
        for channels, reduction in zip(info.channels(), info.reduction(), strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_maps_can_be_chosen(kind: str) -> None:
    with torch.device("meta"):
        info = build(kind, features_only=True, out_indices=(0, 2)).feature_info
    assert info.channels() == [info.info[i]["num_chs"] for i in (0, 2)]
    assert info.reduction() == [info.info[i]["reduction"] for i in (0, 2)]
