import pytest
import timm
import torch
from timm.models import group_parameters

import models  # noqa: F401 (registers the backbones)
from models.compute import count


@pytest.mark.parametrize(
    ("size", "params", "macs"),
    [("small", 22_308_712, 4.2864), ("base", 87_083_752, 16.8963), ("large", 305_942_504, 59.6992)],
)
def test_cost_is_the_published_one(size: str, params: int, macs: float) -> None:
    with torch.device("meta"):
        network = timm.create_model(f"convnext_isotropic_{size}")
    report = count(network)
    assert report.params == params
    assert report.conv_linear_macs / 1e9 == pytest.approx(macs, abs=1e-4)


def test_layer_scale_only_where_asked() -> None:
    def has_gamma(**options: object) -> bool:
        network = timm.create_model("convnext_isotropic_small", depth=2, dim=8, **options)
        return any(name.endswith("gamma") for name in network.state_dict())

    assert not has_gamma()
    assert not has_gamma(ls_init_value=0)
    assert has_gamma(ls_init_value=1e-6)


def test_timm_interface() -> None:
    network = timm.create_model("convnext_isotropic_small", depth=3, dim=8, num_classes=5, patch_size=4).eval()
    images = torch.randn(2, 3, 32, 32)
    features = network.forward_features(images)
    assert features.shape == (2, 8, 8, 8)
    torch.testing.assert_close(network(images), network.get_classifier()(network.forward_head(features, True)))
    layers = group_parameters(network, network.group_matcher(), reverse=True)
    assert (layers["stem.weight"], layers["blocks.2.norm.bias"], layers["head.fc.bias"]) == (0, 3, 4)
    network.reset_classifier(0)
    assert network(images).shape == (2, 8)


def test_features() -> None:
    options = {"depth": 4, "dim": 8, "features_only": True}
    network = timm.create_model("convnext_isotropic_small", **options)
    assert [feature.shape for feature in network(torch.randn(1, 3, 32, 48))] == 3 * [(1, 8, 2, 3)]
    network = timm.create_model("convnext_isotropic_small", out_indices=(1, 3), **options)
    assert network.feature_info.channels() == [8, 8]
    assert network.feature_info.reduction() == [16, 16]
    assert len(network(torch.randn(1, 3, 32, 48))) == 2


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        network = timm.create_model("convnext_isotropic_small", depth=2, dim=8, head_init_scale=0.1)
        network.set_grad_checkpointing(enable)
        network(torch.ones(2, 3, 32, 32)).sum().backward()
        gradients.append(network.stem.weight.grad)
    torch.testing.assert_close(*gradients)
