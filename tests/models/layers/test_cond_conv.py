import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import compute
from models.decisions import noted
from models.layers.cond_conv import CondConv2d, Routing, share_routing
from models.layers.dynamic_conv import DynamicConv2d

LAYERS = {
    "cond_conv": partial(CondConv2d, num_experts=3),
    "softmax": partial(CondConv2d, num_experts=3, gate="softmax"),
    "dynamic_conv": partial(DynamicConv2d, num_kernels=3, temperature=2.0),
}
GEOMETRIES = {
    "dense": (6, 8, 3, 2, 1, 1, 1, True),
    "grouped": (6, 8, 3, 1, 2, 2, 2, True),
    "depthwise": (6, 6, 5, 1, 2, 1, 6, False),
    "pointwise": (6, 8, 1, 1, 0, 1, 1, True),
}


def build(layer, geometry):
    torch.manual_seed(0)
    return LAYERS[layer](*GEOMETRIES[geometry])


def images(batch=5):
    return torch.randn(batch, 6, 9, 8, generator=torch.Generator().manual_seed(1))


def convolve(layer, x, kernel, bias):
    return F.conv2d(x, kernel, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", LAYERS)
def test_output_is_the_mixture_of_the_experts_outputs(name, geometry):
    layer, x = build(name, geometry), images()
    out = layer(x)
    r = noted(layer)[""].values
    assert r.std(0).max() > 1e-3  # it does depend on the image
    assert not r.requires_grad
    kernels = layer.weight.reshape(-1, *layer.kernel_shape)
    expected = sum(
        r[:, i, None, None, None] * convolve(layer, x, kernels[i], None if layer.bias is None else layer.bias[i])
        for i in range(3)
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", ["softmax", "dynamic_conv"])
def test_equal_experts_are_the_static_layer(name, geometry):
    layer, x = build(name, geometry), images()
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.randn_like(layer.bias[0]).expand_as(layer.bias))
    bias = None if layer.bias is None else layer.bias[0]
    expected = convolve(layer, x, layer.weight[0].reshape(layer.kernel_shape), bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_is_its_images(name, geometry):
    layer, x = build(name, geometry), images()
    expected = torch.cat([layer(image) for image in x.split(1)])
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_computes_coefficients_in_full_precision(name):
    layer, x = build(name, "dense"), images()
    expected = layer(x)
    r = noted(layer)[""].values
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(noted(layer)[""].values, r)
    torch.testing.assert_close(out.float(), expected, rtol=5e-2, atol=5e-2)
    out.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_compiles_into_one_graph(name):
    layer, x = build(name, "dense"), images()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    expected, actual = (torch.autograd.grad(run(x).square().sum(), layer.weight)[0] for run in (layer, compiled))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_mixing_and_routing_are_counted(name):
    layer = build(name, "dense")
    weights = layer.weight[0].numel() + 8
    routing = 6 * 3 if name != "dynamic_conv" else 6 * 2 + 2 * 3
    report = compute.count(layer, (6, 9, 8))
    assert report.conv_macs == 8 * 6 * 9 * 5 * 4
    assert report.macs - report.conv_macs == 3 * weights + routing
    assert compute.executed(layer, images()).macs == report.macs
    assert noted(layer)[""].values.shape == (5, 3)
    # Nothing without data is left behind by the count.
    compute.count(layer, (6, 9, 8))
    copy.deepcopy(layer)(images())


@pytest.mark.parametrize("name", LAYERS)
def test_like_takes_geometry_and_scale_of_the_host(name):
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, 3, 2, 1, groups=4)
    with torch.no_grad():
        conv.weight.mul_(5)
    like = LAYERS[name].func.like
    layer = like(conv)
    assert layer(torch.randn(2, 16, 8, 8)).shape == conv(torch.randn(2, 16, 8, 8)).shape
    for kernel in layer.weight:
        assert kernel.std().item() == pytest.approx(conv.weight.std().item(), rel=0.1)
    copied = like(conv, init="copy")
    for kernel in copied.weight:
        torch.testing.assert_close(kernel.reshape(conv.weight.shape), conv.weight, rtol=0, atol=0.1)
    assert not torch.equal(copied.weight[0], copied.weight[1])
    assert like(conv, init="paper").weight.std() < conv.weight.std() / 2
    with pytest.raises(ValueError, match="paper, host, copy"):
        like(conv, init="zeros")
    with pytest.raises(ValueError, match="circular"):
        like(nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"))


@pytest.mark.parametrize("name", LAYERS)
def test_copies_of_a_kernel_differ_by_a_hundredth_of_its_size(name):
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 32, 3)
    copied = LAYERS[name].func.like(conv, init="copy")
    noise = torch.stack([kernel.reshape(conv.weight.shape) - conv.weight for kernel in copied.weight])
    size = conv.weight.square().mean().sqrt()
    # Of 27,648 numbers or more: four standard errors are 1.7 %.
    assert (noise.square().mean().sqrt() / size).item() == pytest.approx(0.01, rel=0.02)
    if conv.bias is not None and copied.bias is not None:
        assert all(torch.equal(bias, conv.bias) for bias in copied.bias)


def test_routing_starts_near_one_half_and_reads_the_mean():
    torch.manual_seed(0)
    routing = Routing(6, 4)
    x = images()
    expected = torch.sigmoid(x.mean((2, 3)) @ routing.weight.T)
    torch.testing.assert_close(routing(x), expected)
    assert (expected - 0.5).abs().max() < 0.2
    with pytest.raises(ValueError, match="sigmoid, softmax"):
        Routing(6, 4, gate="relu")


def test_weight_is_flat_as_published():
    assert CondConv2d(6, 8, 3, groups=2, num_experts=5).weight.shape == (5, 8 * 3 * 9)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = CondConv2d(6, 8, 1, num_experts=3, routing="block")
        self.second = CondConv2d(8, 6, 3, padding=1, num_experts=3, routing="block")

    def forward(self, x):
        return x + self.second(self.first(x).relu())


def shared_block():
    torch.manual_seed(0)
    block = Block()
    share_routing(block)
    return block


def test_a_block_shares_the_routing_of_its_input():
    block, x = shared_block(), images()
    r = block.routing_fn(x)
    expected = x + block.second(block.first(x, r).relu(), r)
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(noted(block.second)[""].values, r)
    assert block.second.handed is None  # no graph is kept
    assert {name.split(".")[0] for name in block.state_dict()} == {"first", "second", "routing_fn"}


def test_a_copied_block_routes_by_itself():
    block, x = shared_block(), images()
    expected = block(x)
    copied = copy.deepcopy(block)
    with torch.no_grad():
        block.routing_fn.weight.add_(10)
    torch.testing.assert_close(copied(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(copied))(x), expected)
    assert not torch.allclose(block(x), expected)


def test_a_shared_block_compiles():
    block, x = shared_block(), images()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))


def test_layers_without_routing_say_so():
    layer = CondConv2d(6, 8, 3, routing="block")
    with pytest.raises(ValueError, match="routing_weights"):
        layer(images())
    with pytest.raises(ValueError, match="no CondConv"):
        share_routing(nn.Conv2d(3, 3, 1))
    block = Block()
    block.second = CondConv2d(8, 6, 3, padding=1, num_experts=4, routing="block")
    with pytest.raises(ValueError, match="same experts"):
        share_routing(block)
    with pytest.raises(ValueError, match="layer, block"):
        CondConv2d(6, 8, 3, routing="network")
    with pytest.raises(ValueError, match="at least one"):
        CondConv2d(6, 8, 3, num_experts=0)
    with pytest.raises(ValueError, match="groups"):
        CondConv2d(6, 8, 3, groups=4)
    with pytest.raises(ValueError, match="'same'"):
        CondConv2d(6, 8, 3, padding="valid")


def test_one_expert_is_a_gated_convolution():
    layer, x = CondConv2d(6, 8, 3, num_experts=1), images()
    static = F.conv2d(x, layer.weight[0].reshape(8, 6, 3, 3))
    torch.testing.assert_close(layer(x), layer.routing_fn(x)[:, :, None, None] * static, rtol=1e-4, atol=1e-5)
