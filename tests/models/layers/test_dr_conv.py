from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from models.compute import count, executed
from models.decisions import noted
from models.layers.dr_conv import DRConv2d, gathered_region_conv2d, masked_region_conv2d
from models.layers.per_sample_conv import per_sample_conv2d
from models.surgery import replace

VARIANTS: list[dict[str, Any]] = [
    {"generator": "expert_mixture", "guide": "pointwise", "num_experts": 3},
    {"generator": "pool_conv", "guide": "conv"},
]
GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 3, "stride": 2, "padding": "same", "groups": 4},
]


def layer(bias: bool = True, **options: Any) -> DRConv2d:
    torch.manual_seed(0)
    built = DRConv2d(4, 8, bias=bias, **{"num_regions": 3, **options})
    for name, parameter in built.named_parameters():
        # As initialised, the kernels of an image hardly differ.
        if not name.endswith("generator.weight"):
            nn.init.normal_(parameter, std=1.0)
    return built


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 4, 9, 8, generator=torch.Generator().manual_seed(1))


def static(geometry: dict[str, Any]) -> nn.Conv2d:
    return (Conv2dSame if geometry.get("padding") == "same" else nn.Conv2d)(4, 8, **geometry)


def published(conv: DRConv2d, *inputs: Tensor) -> Tensor:
    with torch.enable_grad():
        return conv.train()(*inputs).detach()


def skipping(conv: DRConv2d, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return conv.eval()(*inputs)


@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "paper"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_evaluation_equals_training(variant: dict[str, Any], geometry: dict[str, Any]) -> None:
    conv = layer(**variant, **geometry)
    trained = published(conv, images())
    assert trained.shape == static(geometry)(images()).shape
    assert len(noted(conv)[""].values.unique()) > 1
    torch.testing.assert_close(skipping(conv, images()), trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_each_position_has_the_kernel_of_its_region(geometry: dict[str, Any]) -> None:
    conv = layer(guide="given", **geometry)
    every = [published(conv, images(), one_region(3, region)) for region in range(3)]
    scores = torch.randn(3, 3, *every[0].shape[-2:])
    chosen = torch.stack(every, 1).take_along_dim(scores.argmax(1)[:, None, None], 1)[:, 0]
    torch.testing.assert_close(published(conv, images(), scores), chosen)
    assert not torch.allclose(every[0], every[1], atol=0.1)


def one_region(batch: int, region: int) -> Tensor:
    return F.one_hot(torch.full((batch, 1, 1), region), 3).movedim(-1, 1).float()


@pytest.mark.parametrize("evaluate", [published, skipping])
@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "paper"])
def test_one_region_everywhere_is_a_convolution_per_image(variant: dict[str, Any], evaluate: Any) -> None:
    conv = layer(kernel_size=3, stride=2, padding=1, groups=2, **{**variant, "guide": "given"})
    banks = conv.generator(images()).detach()
    assert banks.shape == (3, 3, 8, 2, 3, 3)
    assert conv.bias is not None
    bias = conv.bias.detach().expand(3, -1)
    expected = per_sample_conv2d(images(), banks[:, 2], bias, stride=2, padding=1, groups=2)
    torch.testing.assert_close(evaluate(conv, images(), one_region(3, 2)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("evaluate", [published, skipping])
@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "paper"])
def test_a_batch_equals_its_images_one_by_one(variant: dict[str, Any], evaluate: Any) -> None:
    conv = layer(kernel_size=3, padding=1, **variant)
    alone = torch.cat([evaluate(conv, image[None]) for image in images()])
    torch.testing.assert_close(evaluate(conv, images()), alone, rtol=1e-5, atol=1e-5)


def test_kernels_start_as_the_mean_of_the_experts() -> None:
    conv = DRConv2d(4, 8, 3, num_regions=3, num_experts=5)
    experts = conv.generator.weight.detach()
    bound = (6 / 36) ** 0.5
    assert 0.9 * bound < experts.abs().max() <= bound
    nn.init.zeros_(conv.generator.routing.weight)
    expected = experts.mean(1).view(1, 1, 8, 4, 3, 3).expand(2, 3, -1, -1, -1, -1)
    torch.testing.assert_close(conv.generator(images(2)), expected)


def test_generator_of_the_paper_keeps_regions_apart() -> None:
    conv = layer(kernel_size=1, generator="pool_conv")
    before = conv.generator(images()).detach()
    conv.generator.hidden.bias.data[3:6] += 1.0
    changed = (conv.generator(images()).detach() != before).flatten(2).any(2).any(0)
    assert changed.tolist() == [False, True, False]


def test_parameters_of_the_paper() -> None:
    conv = DRConv2d(96, 96, 1, bias=False, generator="pool_conv", guide="conv")
    assert sum(parameter.numel() for parameter in conv.parameters()) == 670_536


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_gradient_of_the_guide_is_soft(beta: float) -> None:
    conv = layer(kernel_size=3, padding=1, guide="given", beta=beta)
    scores = torch.randn(3, 3, 9, 8, requires_grad=True)
    cotangent = torch.randn(3, 8, 9, 8)
    (conv(images(), scores) * cotangent).sum().backward()
    results = torch.stack([published(conv, images(), one_region(3, region)) for region in range(3)], 1)
    # The bias is in all results alike and cancels.
    gain = (results * cotangent[:, None]).sum(2)
    soft = scores.detach().softmax(1)
    expected = beta * soft * (gain - (soft * gain).sum(1, keepdim=True))
    torch.testing.assert_close(scores.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_alpha", [False, True])
def test_gradient_of_kernels_and_images(use_alpha: bool) -> None:
    def leaves() -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        return torch.randn(2, 3, 8, 2, 3, 3, requires_grad=True), images(2).requires_grad_()

    alpha = torch.randn(2, 3, 7, 6).softmax(1)
    regions, cotangent = alpha.argmax(1), torch.randn(2, 8, 7, 6)
    (kernels, pixels), (expected_kernels, expected_pixels) = leaves(), leaves()
    out = masked_region_conv2d(pixels, kernels, regions, alpha, groups=2, use_alpha=use_alpha)
    (out * cotangent).sum().backward()

    hard = F.one_hot(regions, 3).movedim(-1, 1).float()
    weights = alpha if use_alpha else hard
    for region in range(3):
        for i in range(2):
            image, kernel = expected_pixels[i : i + 1], expected_kernels[i, region]
            to_kernel = F.conv2d(image.detach(), kernel, groups=2) * weights[i, region]
            to_image = F.conv2d(image, kernel.detach(), groups=2) * hard[i, region]
            ((to_kernel + to_image) * cotangent[i]).sum().backward()
    torch.testing.assert_close(kernels.grad, expected_kernels.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pixels.grad, expected_pixels.grad, rtol=1e-4, atol=1e-4)


def test_gathering_has_a_gradient_too() -> None:
    banks = torch.randn(3, 3, 8, 4, 1, 1, requires_grad=True)
    regions = torch.randint(3, (3, 9, 8), generator=torch.Generator().manual_seed(3))
    alpha = F.one_hot(regions, 3).movedim(-1, 1).float()
    (gathered,) = torch.autograd.grad(gathered_region_conv2d(images(), banks, regions).square().sum(), banks)
    (masked,) = torch.autograd.grad(masked_region_conv2d(images(), banks, regions, alpha).square().sum(), banks)
    torch.testing.assert_close(gathered, masked, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_executed_work_is_that_of_a_static_convolution(geometry: dict[str, Any]) -> None:
    conv = layer(guide="given", num_experts=2, **geometry)
    scores = torch.randn(5, 3, 9, 8)

    def work(network: nn.Module, *inputs: Tensor) -> float:
        report = executed(network, *inputs)
        return report.macs - sum(line.macs for line in report.modules if line.name.endswith("generator"))

    cost = work(static(geometry), images(5))
    assert work(conv, images(5), scores) == cost
    assert work(conv, images(5), one_region(5, 1)) == cost
    assert work(Training(conv), images(5), scores) == 3 * cost


class Training(nn.Module):
    """Runs a layer in training mode, whatever its own mode."""

    def __init__(self, conv: DRConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.conv.train()(*inputs)


@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "paper"])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_counting_needs_no_data(variant: dict[str, Any], device: str) -> None:
    conv = layer(kernel_size=3, padding=1, **variant)
    expected = executed(conv, images()).macs
    maps = noted(conv)[""].values.clone()
    assert count(conv.to(device), (4, 9, 8)).macs == expected
    assert torch.equal(noted(conv)[""].values, maps)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "paper"])
def test_autocast(variant: dict[str, Any], training: bool) -> None:
    conv = layer(kernel_size=3, padding=1, **variant)
    full = (published if training else skipping)(conv, images())
    regions = noted(conv)[""].values
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(training):
        half = conv(images())
        if training:
            half.float().square().sum().backward()
    assert half.dtype == torch.bfloat16
    same = (noted(conv)[""].values == regions)[:, None].expand_as(full)
    assert same.float().mean() > 0.95
    torch.testing.assert_close(half.float()[same], full[same], rtol=0.05, atol=0.05 * full.abs().max().item())
    if training:
        assert all(parameter.grad.isfinite().all() for parameter in conv.parameters())


@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "paper"])
def test_every_parameter_learns_in_either_mode(variant: dict[str, Any]) -> None:
    for training in (True, False):
        conv = layer(kernel_size=3, **variant).train(training)
        conv(images()).square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in conv.parameters())


def test_regions_of_the_last_forward_pass() -> None:
    conv = layer(kernel_size=1, stride=2, guide="given")
    assert not noted(conv)
    scores = torch.randn(3, 3, 9, 8, requires_grad=True)
    conv(images(), scores)
    assert not noted(conv)[""].values.requires_grad
    # Of 9 rows the nearest neighbours of 5 are 0, 1, 3, 5 and 7.
    assert torch.equal(noted(conv)[""].values, scores.argmax(1)[:, [0, 1, 3, 5, 7]][:, :, ::2])


def test_ties_go_to_the_first_region() -> None:
    conv = layer(kernel_size=1, guide="given")
    conv(images(), torch.tensor([1.0, 2.0, 2.0]).view(1, 3, 1, 1).expand(3, -1, 9, 8))
    assert noted(conv)[""].values.unique().tolist() == [1]


@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "paper"])
def test_compiled_and_exported(variant: dict[str, Any]) -> None:
    conv = layer(kernel_size=3, padding=1, **variant)
    expected = skipping(conv, images())
    compiled = torch.compile(conv, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), expected, rtol=1e-5, atol=1e-5)
        exported = torch.export.export(conv, (images(),)).module()
        torch.testing.assert_close(exported(images()), expected, rtol=1e-5, atol=1e-5)


def test_like_a_static_convolution() -> None:
    static = nn.Conv2d(4, 8, (3, 1), (2, 1), (1, 0), dilation=(2, 1), groups=2, bias=False)
    conv = DRConv2d.like(static, num_regions=2, generator="pool_conv")
    assert conv.bias is None
    assert skipping(conv, images()).shape == static(images()).shape
    same = Conv2dSame(4, 8, 3, 2)
    assert skipping(DRConv2d.like(same), images()).shape == same(images()).shape
    with pytest.raises(ValueError, match="reflect"):
        DRConv2d.like(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"))


def test_in_place_of_the_pointwise_convolutions_of_a_host() -> None:
    network = timm.create_model("mobilenetv2_035", num_classes=3)
    names = replace(network, partial(DRConv2d.like, num_regions=4), kinds=["pointwise"], last_blocks=2)
    layers = [module for module in network.modules() if isinstance(module, DRConv2d)]
    assert len(layers) == len(names) == 4
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    assert [noted(module)[""].values.shape for module in layers] == [(2, 2, 2)] * 4
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "mlp"}, "expert_mixture, pool_conv"),
        ({"guide": "none"}, "pointwise, conv, given"),
        ({"padding": "valid"}, "'same'"),
        ({"num_regions": 0}, "num_regions=0"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"groups": 3}, "groups=3"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DRConv2d(4, 8, **{"kernel_size": 3, **options})


def test_scores_belong_to_a_layer_without_a_guide() -> None:
    with pytest.raises(ValueError, match="scores"):
        layer(kernel_size=1, guide="given")(images())
    with pytest.raises(ValueError, match="scores"):
        layer(kernel_size=1)(images(), torch.randn(3, 3, 9, 8))


def test_learns_the_regions_of_two_filters() -> None:
    torch.manual_seed(0)
    filters = 0.4 * torch.randn(2, 4, 3, 3, 3)

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn(32, 3, 12, 12)
        regions = F.avg_pool2d(torch.randn(32, 1, 12, 12), 7, 1, 3).sign()
        filtered = [F.conv2d(noise, kernel, padding=1) for kernel in filters]
        return torch.cat([noise, regions], 1), torch.where(regions > 0, *filtered), regions[:, 0] > 0

    losses = {}
    dynamic = DRConv2d(4, 4, 3, padding=1, num_regions=2, num_experts=2)
    for network in (nn.Conv2d(4, 4, 3, padding=1), dynamic):
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(500):
            inputs, targets, regions = batch()
            loss = F.mse_loss(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[type(network).__name__] = loss.item()
    assert losses["DRConv2d"] < losses["Conv2d"] / 10
    agreement = ((noted(dynamic)[""].values == 1) == regions).float().mean().item()
    assert max(agreement, 1 - agreement) > 0.95
