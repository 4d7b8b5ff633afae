from functools import partial

import pytest
import timm
import torch
from torch import nn

from models.classifiers import dynamic_kernels
from models.decisions import noted
from models.layers.cond_conv import CondConv2d
from models.layers.dr_conv import DRConv2d
from models.layers.dynamic_conv import DynamicConv2d
from models.layers.kernel_mixture import KernelMixture
from models.surgery import convolution_sites, replace

SHARED = partial(CondConv2d.like, num_experts=4, routing="block")


def meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def dynamic(network):
    return [name for name, module in network.named_modules() if isinstance(module, KernelMixture)]


@pytest.mark.parametrize(
    ("host", "count"),
    [
        ("mobilenetv1_100", 26),
        ("mobilenetv3_small_100", 33),
        ("mobilenetv4_conv_small", 44),
        ("resnet18", 19),
        ("seresnet18", 19),
        ("regnetx_002", 43),
        ("vgg11_bn", 8),
        ("convnext_atto", 36),
        ("ladder_r50_5_inverted", 57),
    ],
)
def test_every_block_convolution_of_any_host(host, count):
    network = meta(host)
    inside = [site.name for site in convolution_sites(network) if site.block and ".se." not in site.name]
    assert len(inside) == count
    assert replace(network, DynamicConv2d.like) == inside
    assert dynamic(network) == inside
    assert network(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)


def test_hosts_without_group_matcher_are_read_by_their_names():
    from torchvision.models import mobilenet_v2, resnet18, shufflenet_v2_x0_5

    with torch.device("meta"):
        hosts = [resnet18(), mobilenet_v2(), shufflenet_v2_x0_5()]
    first = [replace(host, DynamicConv2d.like, last_blocks=1) for host in hosts]
    assert first[0] == ["layer4.1.conv1", "layer4.1.conv2"]
    assert first[1] == ["features.17.conv.0.0", "features.17.conv.1.0", "features.17.conv.2"]
    assert first[2] == ["stage4.3.branch2.0", "stage4.3.branch2.3", "stage4.3.branch2.5"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"last_blocks": 1}, ["blocks.6.0.conv_pw", "blocks.6.0.conv_dw", "blocks.6.0.conv_pwl"]),
        ({"last_blocks": 1, "kinds": ["depthwise"]}, ["blocks.6.0.conv_dw"]),
        ({"stages": [-1], "kernel_sizes": [1]}, ["blocks.6.0.conv_pw", "blocks.6.0.conv_pwl"]),
        ({"stages": [0], "kinds": ["pointwise"]}, ["blocks.0.0.conv_pw"]),
        ({"names": ["conv_head", "blocks.6.*"], "exclude": ["*.conv_dw"]}, None),
        ({"names": [], "classifier": True}, ["classifier"]),
    ],
)
def test_selection(selection, expected):
    network = meta("mobilenetv2_100")
    replaced = replace(network, DynamicConv2d.like, **selection)
    assert replaced == (expected or ["blocks.6.0.conv_pw", "blocks.6.0.conv_pwl", "conv_head"])
    assert len(dynamic(network)) == len(replaced)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"stages": [7]}, r"no stage 7; there are 0 \(blocks.0\).*6 \(blocks.6\)"),
        ({"stages": [-8]}, "no stage -8"),
        ({"last_blocks": 18}, "18; there are 1 to 17"),
        ({"last_blocks": 0}, "0; there are 1 to 17"),
        ({"names": ["blocks.*", "head.*"]}, r"named head.\*; there are conv_stem, blocks.0.0.conv_dw"),
        ({"kinds": ["grouped"]}, "kind grouped; there are depthwise, pointwise"),
        ({"kernel_sizes": [1, 5]}, "size 5; there are 1, 3"),
        ({"stages": [0], "last_blocks": 2}, "all conditions at once"),
        ({"exclude": ["*"]}, "all conditions at once"),
    ],
)
def test_a_selection_of_nothing_lists_what_there_is(selection, message):
    network = meta("mobilenetv2_100")
    with pytest.raises(ValueError, match=message):
        replace(network, DynamicConv2d.like, **selection)
    assert not dynamic(network)


def test_a_host_without_linear_classifier():
    network = meta("resnet18", num_classes=0)
    with pytest.raises(ValueError, match="no linear classifier; its linear layers: none"):
        replace(network, DynamicConv2d.like, names=[], classifier=True)


def test_replaced_efficientnet_is_timms_condconv():
    torch.manual_seed(0)
    published = timm.create_model("tf_efficientnet_cc_b0_4e", num_classes=7).eval()
    network = timm.create_model("condconv_efficientnet_b0_4e", num_classes=7, bn_eps=1e-3, pad_type="same").eval()
    with torch.no_grad():
        for name, parameter in published.named_parameters():
            if name.endswith("bn3.weight") or "routing" in name:
                parameter.normal_()
    network.load_state_dict(published.state_dict())
    images = torch.randn(2, 3, 75, 64)
    with torch.no_grad():
        expected, actual = published(images), network(images)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    # The images get kernels of their own.
    assert noted(network)["blocks.4.0.conv_dw"].values.std(0).min() > 1e-4


def test_static_copies_keep_the_function_of_a_trained_host():
    torch.manual_seed(0)
    static = timm.create_model("resnet18", num_classes=5).eval()
    network = timm.create_model("resnet18", num_classes=5).eval()
    network.load_state_dict(static.state_dict())
    replace(network, partial(DynamicConv2d.like, init="copy"), classifier=True)
    assert not network.training
    assert not network.get_submodule("layer1.0.conv1").training
    images = torch.randn(2, 3, 64, 64)
    expected, actual = static(images), network(images)
    assert (actual - expected).abs().max() < 0.1 * expected.std()


@pytest.mark.parametrize("layer", ["cond_conv", "dynamic_conv", "dr_conv"])
def test_dynamic_kernels_trains_end_to_end(layer):
    torch.manual_seed(0)
    network = dynamic_kernels("mobilenetv2_035", 10, layer, last_blocks=2, kernel_sizes=[1], in_chans=1).train()
    network(torch.randn(4, 1, 32, 32)).square().mean().backward()
    kind = {"cond_conv": CondConv2d, "dynamic_conv": DynamicConv2d, "dr_conv": DRConv2d}[layer]
    layers = [module for module in network.modules() if isinstance(module, kind)]
    assert len(layers) == 4
    assert all(parameter.grad is not None for made in layers for parameter in made.parameters())


def test_dynamic_kernels_refuses_unknown_options():
    with pytest.raises(ValueError, match="cond_conv, dynamic_conv, dr_conv"):
        dynamic_kernels("resnet18", layer="odconv")
    with pytest.raises(ValueError, match=r"no option experts; it has num_experts, routing"):
        dynamic_kernels("resnet18", layer_options={"experts": 3})
    with pytest.raises(ValueError, match=r"no option regions; it has num_regions"):
        dynamic_kernels("resnet18", layer="dr_conv", layer_options={"regions": 3})


def test_shared_routing_follows_the_blocks():
    network = meta("mobilenetv2_100")
    replace(network, SHARED, names=["blocks.5.*", "conv_head"], classifier=True)
    routings = [name for name, _ in network.named_modules() if name.endswith("routing_fn")]
    assert routings == [
        *(f"blocks.5.{i}.routing_fn" for i in range(3)),
        "conv_head.routing_fn",
        "classifier.layer.routing_fn",
    ]


def test_a_block_that_splits_its_input_asks_for_routing_by_layer():
    network = nn.Sequential()
    network.add_module("blocks", nn.ModuleList([Split()]))
    replace(network, SHARED)
    with pytest.raises(ValueError, match="routing='layer'"):
        network.get_submodule("blocks.0")(torch.randn(2, 8, 4, 4))


class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(x[:, 4:])
