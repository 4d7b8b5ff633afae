"""The networks of "Rethinking the Value of Network Pruning": what the published code counts of each, and its start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import nn

import models.backbones  # noqa: F401  registers our networks with timm
from models.classifiers import VGG, CIFARDenseNet, CIFARResNet, ImageNetVGG, PreActResNet
from models.compute import count
from models.layers.channel_selection import ChannelSelection
from models.mistakes import Mistake
from models.pruning.counting import published_flops, scratch_b_epochs

Build = Callable[[], Any]
_L1_VGG = partial(VGG, hidden=512)
_GAP = partial(ImageNetVGG, hidden=())
# Parameters, with the selections that are parameters in the published code; its counter, in 1e9.
SMALL: dict[str, tuple[Build, int, float]] = {
    "vgg16": (_L1_VGG, 14_987_722, 0.62788),
    "vgg16_l1_a": (partial(_L1_VGG, "vgg16_l1_a"), 5_397_034, 0.41336),
    "resnet20": (CIFARResNet, 269_722, 0.08167),
    "resnet32": (partial(CIFARResNet, 32), 464_154, 0.13864),
    "resnet56": (partial(CIFARResNet, 56), 853_018, 0.25257),
    "resnet56_l1_a": (partial(CIFARResNet, 56, "resnet56_l1_a"), 773_336, 0.22639),
    "resnet56_l1_b": (partial(CIFARResNet, 56, "resnet56_l1_b"), 735_712, 0.18314),
    "resnet110": (partial(CIFARResNet, 110), 1_727_962, 0.50893),
    "resnet110_l1_a": (partial(CIFARResNet, 110, "resnet110_l1_a"), 1_688_522, 0.42829),
    "resnet110_l1_b": (partial(CIFARResNet, 110, "resnet110_l1_b"), 1_168_424, 0.31275),
    "slimming_vgg19": (partial(VGG, "vgg19"), 20_035_018, 0.79730),
    "slimming_preresnet164": (PreActResNet, 1_711_338, 0.50476),
    "slimming_densenet40": (CIFARDenseNet, 1_068_658, 0.57305),
    "unstructured_vgg19": (partial(VGG, "vgg19", bias=True), 20_040_522, 0.79761),
    "unstructured_preresnet110": (partial(PreActResNet, 110, selection=False), 1_146_842, 0.34123),
    "unstructured_densenet100": (
        partial(CIFARDenseNet, 100, selection=False, compression=2),
        4_068_490,
        2.68415,
    ),
}
LARGE: dict[str, tuple[Build, int, float]] = {
    "vgg16_imagenet": (ImageNetVGG, 138_357_544, 30.97376),
    "vgg16_thinet_conv": (partial(ImageNetVGG, "vgg16_thinet_conv"), 131_452_552, 9.59939),
    "vgg16_thinet_gap": (partial(_GAP, "vgg16_thinet_gap"), 8_322_696, 9.35303),
    "vgg16_thinet_tiny": (partial(_GAP, "vgg16_thinet_tiny"), 1_325_368, 2.01749),
    "vgg16_regression_5x": (partial(ImageNetVGG, "vgg16_regression_5x"), 130_879_294, 7.04349),
    "vgg11_slimming": (
        partial(ImageNetVGG, "vgg11_imagenet", norm=True, hidden_norm=True),
        132_885_224,
        15.25403,
    ),
    **{
        name: (partial(timm.create_model, name), *published)
        for name, published in {
            "resnet34": (21_797_672, 7.34039),
            "resnet34_l1_a": (20_151_764, 6.21250),
            "resnet34_l1_b": (19_469_372, 5.57620),
            "resnet50_biased": (25_560_872, 8.21362),
            "resnet50_thinet_30": (8_669_158, 2.36089),
            "resnet50_thinet_50": (12_385_704, 3.67438),
            "resnet50_thinet_70": (16_949_086, 5.23501),
            "resnet50_regression_2x": (19_710_544, 5.49378),
        }.items()
    },
}
# Of which nobody has published the counter.
STRUCTURES = {
    "resnet50": (25_557_032, 4.0892),
    "resnet50_sss_41": (25_358_120, 3.4726),
    "resnet50_sss_32": (14_268_968, 2.8175),
    "resnet50_sss_26": (14_919_464, 2.2780),
}
# Large network, pruned one, epochs of the large one, largest ratio that is granted, epochs of Scratch-B.
SCRATCH_B = [
    ("vgg16", "vgg16_l1_a", 160, None, 243),
    ("resnet56", "resnet56_l1_a", 160, None, 178),
    ("resnet56", "resnet56_l1_b", 160, None, 220),
    ("resnet110", "resnet110_l1_a", 160, None, 190),
    ("resnet110", "resnet110_l1_b", 160, None, 260),
    ("resnet34", "resnet34_l1_a", 90, 2, 106),
    ("resnet34", "resnet34_l1_b", 90, 2, 118),
    ("vgg16_imagenet", "vgg16_thinet_conv", 90, 2, 180),
    ("vgg16_imagenet", "vgg16_thinet_gap", 90, 2, 180),
    ("vgg16_imagenet", "vgg16_thinet_tiny", 90, 2, 180),
    ("vgg16_imagenet", "vgg16_regression_5x", 90, 2, 180),
    ("resnet50_biased", "resnet50_thinet_30", 90, 2, 180),
    ("resnet50_biased", "resnet50_thinet_50", 90, 2, 180),
    ("resnet50_biased", "resnet50_thinet_70", 90, 2, 141),
    ("resnet50_biased", "resnet50_regression_2x", 90, 2, 134),
    ("resnet50", "resnet50_sss_41", 100, None, 117),
    ("resnet50", "resnet50_sss_32", 100, None, 145),
    ("resnet50", "resnet50_sss_26", 100, None, 179),
]


def counted(name: str) -> float:
    """The published counter, of 1e9, as the table of these networks has it; multiply-adds of those without one."""
    if name in STRUCTURES:
        return STRUCTURES[name][1]
    return (SMALL | LARGE)[name][2]


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_sizes_are_those_of_the_published_code(name: str) -> None:
    build, parameters, flops = (SMALL | LARGE)[name]
    side = 32 if name in SMALL else 224
    with torch.device("meta"):
        network = build().eval()
        selections = [module for module in network.modules() if isinstance(module, ChannelSelection)]
        chosen = sum(selection.indexes.numel() for selection in selections)
        assert sum(each.numel() for each in network.parameters()) + chosen == parameters
        # The code sums in single precision.
        measured = published_flops(network, torch.zeros(1, 3, side, side))
        assert measured / 1e9 == pytest.approx(flops, abs=5e-6, rel=5e-7)


@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "resnet50"])
def test_sizes_of_selected_structures(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name).eval()
        assert sum(each.numel() for each in network.parameters()) == STRUCTURES[name][0]
        assert count(network, (3, 224, 224)).macs / 1e9 == pytest.approx(STRUCTURES[name][1], abs=5e-5)


@pytest.mark.parametrize(("large", "small", "epochs", "cap", "expected"), SCRATCH_B)
def test_epochs_of_scratch_b(large: str, small: str, epochs: int, cap: float | None, expected: int) -> None:
    assert scratch_b_epochs(epochs, counted(large), counted(small), cap) == expected


def test_weights_start_as_in_the_published_code() -> None:
    torch.manual_seed(0)
    network = VGG([64, "M", 32], hidden=512, gamma=0.5)
    assert network.trunk[4].weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)
    by_input = VGG([64, "M", 32], fan="fan_in", bias=True)
    assert by_input.trunk[4].weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    for norm, gamma in ((network.trunk[1], 0.5), (network.classifier[1], 1.0), (by_input.trunk[1], 1.0)):
        assert set(norm.weight.tolist()) == {gamma}
        assert not norm.bias.any()
    assert network.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not network.classifier[0].bias.any()
    assert not by_input.trunk[0].bias.any()
    for slim in (PreActResNet(11, gamma=0.5), CIFARDenseNet(7, gamma=0.5)):
        assert {value for m in slim.modules() if isinstance(m, nn.BatchNorm2d) for value in m.weight.tolist()} == {0.5}
    residual = CIFARResNet(8, [16, 20, 40])
    assert residual.stages[2][0].conv1.weight.std().item() == pytest.approx((2 / (9 * 40)) ** 0.5, rel=0.02)
    # No branch starts at zero, as timm's would.
    assert timm.create_model("resnet34_l1_a", layers=(1, 1, 1, 1), inner=[(4,)] * 4).layer1[0].bn2.weight.all()


def test_detached_shortcuts_pass_no_gradient_where_the_width_changes() -> None:
    for detached in (False, True):
        block = CIFARResNet(8, detached_shortcuts=detached).stages[1][0]
        nn.init.zeros_(block.norm2.weight)
        x = torch.randn(2, 16, 8, 8, requires_grad=True)
        block(x).sum().backward()
        assert x.grad is not None
        assert x.grad.any() != detached


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: VGG("vgg17"), "name one of vgg11, vgg16,"),
        (lambda: VGG([8, 0]), r"numbers above 0 and M between them, not \[8, 0\]"),
        (lambda: VGG(["M"]), "numbers above 0 and M"),
        (lambda: CIFARResNet(18), "such as 20, 32, 56 or 110, not 18"),
        (lambda: CIFARResNet(8, [1, 2]), r"has 3 middle widths above 0, not \[1, 2\]"),
        (lambda: CIFARResNet(56, "resnet56"), "name one of resnet56_l1_a"),
        (lambda: CIFARResNet(110, "resnet56_l1_a"), "for a depth of 56, not of 110"),
        (lambda: PreActResNet(12), "such as 20, 56, 110 or 164, not 12"),
        (lambda: PreActResNet(11, [1] * 9), "has 10 widths above 0"),
        (lambda: PreActResNet(11, [1] * 10, selection=False), "read shared maps whole"),
        (lambda: CIFARDenseNet(41), "such as 40 or 100, not 41"),
        (lambda: CIFARDenseNet(7, 12, [24, 37, 36, 48, 48, 60]), "has 6 widths up to"),
        (lambda: CIFARDenseNet(7, 12, [24, 35, 36, 48, 48, 60], selection=False), "read all the channels"),
    ],
)
def test_impossible_networks_are_refused(build: Build, told: str) -> None:
    with pytest.raises(Mistake, match=told) as refusal:
        build()
    assert "\n" not in str(refusal.value)
