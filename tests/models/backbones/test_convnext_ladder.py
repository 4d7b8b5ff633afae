import pytest
import timm
import torch
from timm.models import group_parameters

from models.backbones.convnext_ladder import LADDERS, Rung
from models.compute import count
from tests.library.ladder_costs import COSTS

SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "num_classes": 5}


def small(rung: str, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(f"ladder_r50_{rung}", **SMALL | changes)


@pytest.mark.parametrize("regime", ["r50", "r200"])
@pytest.mark.parametrize("rung", COSTS)
def test_cost_is_the_published_one(regime: str, rung: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(f"ladder_{regime}_{rung}")
    macs, params = COSTS[rung][:2] if regime == "r50" else COSTS[rung][2:]
    report = count(network)
    assert report.conv_linear_macs / 1e9 == pytest.approx(macs, abs=1e-4)
    assert report.macs == report.conv_linear_macs
    assert report.params / 1e6 == pytest.approx(params, abs=5.1e-4)


def test_every_rung_is_listed() -> None:
    for regime, rungs in LADDERS.items():
        assert [*rungs, "12_convnext"] == list(COSTS)
        assert len(timm.list_models(f"ladder_{regime}_*")) == 16


def test_first_rung_is_resnet50() -> None:
    ours, theirs = timm.create_model("ladder_r50_0_resnet").eval(), timm.create_model("resnet50").eval()
    in_order = zip(ours.state_dict().items(), _resnet_in_our_order(theirs), strict=True)
    ours.load_state_dict({name: value for (name, _), value in in_order})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def _resnet_in_our_order(resnet: torch.nn.Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    for name, value in resnet.state_dict().items():
        if "running_mean" in name:
            value.normal_(0, 0.1, generator=generator)
        if "running_var" in name:
            value.uniform_(0.5, 1.5, generator=generator)
    return list(resnet.state_dict().values())


@pytest.mark.parametrize(("regime", "name"), [("r50", "convnext_tiny"), ("r200", "convnext_base")])
def test_last_rung_is_convnext(regime: str, name: str) -> None:
    with torch.device("meta"):
        ours, theirs = timm.create_model(f"ladder_{regime}_12_convnext"), timm.create_model(name)
    assert type(ours) is type(theirs)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("rung", COSTS)
@pytest.mark.parametrize(("patch_size", "reductions"), [(4, [4, 8, 16, 32]), (2, [4, 8, 16, 32]), (1, [1, 2, 4, 8])])
def test_features_are_what_the_info_says(rung: str, patch_size: int, reductions: list[int]) -> None:
    network = small(rung, features_only=True, patch_size=patch_size).eval()
    features = network(torch.randn(2, 3, 64, 96))
    assert network.feature_info.reduction() == reductions
    expected = [
        (2, channels, 64 // reduction, 96 // reduction)
        for channels, reduction in zip(network.feature_info.channels(), reductions, strict=True)
    ]
    assert [tuple(feature.shape) for feature in features] == expected


def test_chosen_features_of_a_classifier() -> None:
    network = small("9_fewer_activations", features_only=True, out_indices=(1, 3), in_chans=1).eval()
    classifier = small("9_fewer_activations", in_chans=1).eval()
    images = torch.randn(2, 1, 64, 64)
    assert network.feature_info.channels() == [16, 32]
    torch.testing.assert_close(network(images)[1], classifier.forward_features(images))


@pytest.mark.parametrize("rung", COSTS)
def test_every_parameter_learns(rung: str) -> None:
    network = small(rung, drop_path_rate=0.1, ls_init_value=0.5)
    blocks = [module for module in network.modules() if type(module).__name__ == "DropPath"]
    assert [block.drop_prob for block in blocks] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    torch.manual_seed(1)
    network(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("rung", ["0_resnet", "5_inverted", "11_layernorm"])
def test_timm_interface(rung: str) -> None:
    network = small(rung).eval()
    images = torch.randn(2, 3, 64, 64)
    features = network.forward_features(images)
    pooled = network.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, network.num_features)
    torch.testing.assert_close(network(images), network.get_classifier()(pooled))
    layers = group_parameters(network, network.group_matcher(), reverse=True)
    assert layers["stem.0.weight"] == 0
    assert layers["stages.2.blocks.1.branch.conv1.weight"] == 4
    assert layers["head.fc.weight"] == max(layers.values()) == 6
    network.reset_classifier(7)
    assert network(images).shape == (2, 7)
    network.reset_classifier(0)
    torch.testing.assert_close(network(images), pooled)


@pytest.mark.parametrize("rung", ["0_resnet", "11_layernorm"])
def test_gradient_checkpointing_changes_nothing(rung: str) -> None:
    gradients = []
    for enable in (False, True):
        network = small(rung)
        network.set_grad_checkpointing(enable)
        network(torch.ones(2, 3, 64, 64)).sum().backward()
        gradients.append(network.stem[0].weight.grad)
    torch.testing.assert_close(*gradients)


def test_autocast_and_channels_last() -> None:
    network = small("12_convnext").eval()
    images = torch.randn(2, 3, 64, 64)
    for rung in ("2_patchify", "11_layernorm"):
        network = small(rung).eval()
        expected = network(images)
        network = network.to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(images.to(memory_format=torch.channels_last)), expected)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(network(images).float(), expected, rtol=0.1, atol=0.1)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="four stages"):
        small("3_depthwise", dims=(8, 16, 24))
    with pytest.raises(ValueError, match="stride 1, 2 or 4"):
        small("0_resnet", patch_size=3)
    assert small("2_patchify", patch_size=3)(torch.randn(2, 3, 48, 48)).shape == (2, 5)


def test_rungs_change_one_thing_at_a_time() -> None:
    rungs = LADDERS["r50"]
    before, after = rungs["7b_kernel7"], rungs["8_gelu"]
    assert before == Rung(**{**vars(after), "act": "relu"})


@pytest.mark.parametrize("rung", ["1_stage_ratio", "5_inverted", "11_layernorm"])
def test_compiles_without_a_break(rung: str) -> None:
    network = small(rung).eval()
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))


BLOCKS = {
    "0_resnet": "1x1 batch relu | 3x3 batch relu | 1x1 batch | + relu",
    "1_stage_ratio": "1x1 batch relu | 3x3 batch relu | 1x1 batch | + relu",
    "2_patchify": "1x1 batch relu | 3x3 batch relu | 1x1 batch | + relu",
    "3_depthwise": "1x1 batch relu | 3x3 depthwise batch relu | 1x1 batch | + relu",
    "4_width": "1x1 batch relu | 3x3 depthwise batch relu | 1x1 batch | + relu",
    "5_inverted": "1x1 batch relu | 3x3 depthwise batch relu | 1x1 batch | + relu",
    "6_depthwise_up": "3x3 depthwise batch relu | 1x1 batch relu | 1x1 batch | + relu",
    "7a_kernel5": "5x5 depthwise batch relu | 1x1 batch relu | 1x1 batch | + relu",
    "7b_kernel7": "7x7 depthwise batch relu | 1x1 batch relu | 1x1 batch | + relu",
    "7c_kernel9": "9x9 depthwise batch relu | 1x1 batch relu | 1x1 batch | + relu",
    "7d_kernel11": "11x11 depthwise batch relu | 1x1 batch relu | 1x1 batch | + relu",
    "8_gelu": "7x7 depthwise batch gelu | 1x1 batch gelu | 1x1 batch | + gelu",
    "9_fewer_activations": "7x7 depthwise batch | 1x1 batch gelu | 1x1 batch | +",
    "10_fewer_norms": "7x7 depthwise batch | 1x1 gelu | 1x1 | +",
    "11_layernorm": "7x7 depthwise layer | 1x1 gelu | 1x1 | +",
}


@pytest.mark.parametrize("rung", BLOCKS)
def test_order_of_layers(rung: str) -> None:
    """What runs, in order: multiply-adds cannot see where norms and activations are."""
    names = {"BatchNorm2d": "batch", "LayerNorm2d": "layer", "ReLU": "relu", "GELU": "gelu"}
    ran: list[str] = []

    def note(module: torch.nn.Module, *_: object) -> None:
        if isinstance(module, torch.nn.Conv2d):
            kernel = "x".join(map(str, module.kernel_size))
            ran.append(f"| {kernel}" + (" depthwise" if module.groups > 1 else ""))
        elif type(module).__name__ in names:
            ran.append(names[type(module).__name__])

    block = small(rung).stages[2].blocks[1]
    for module in block.branch:
        module.register_forward_hook(note)
    block.drop_path.register_forward_hook(lambda *_: ran.append("| +"))
    block.act.register_forward_hook(note)
    block.eval()(torch.randn(1, block.branch.conv1.in_channels, 12, 12))
    assert " ".join(ran).removeprefix("| ") == BLOCKS[rung]
