from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.anytime import exit_costs, iterate
from models.compute import count, executed, executed_by_parts, expected, parameter_count, static_macs
from models.layers.hrnet import HRNet, concatenate
from models.layers.masked_conv import MaskedConv2d
from models.segmenters.adpc import ADPC
from models.segmenters.hrnet_segmenter import HRNetSegmenter
from tests.library.adpc_networks import TINY, blobs, settled

W18, W48 = {"stages": "w18_small_v2", "pooled_dim": 64}, {"stages": "w48", "pooled_dim": 128}
FULL = (3, 1024, 2048)
# Measured on the published implementation: options, parameters, multiply-adds / 2**30 up to each exit at 1024x2048
# (None where they are those of ADP-C with every pixel computed).
MEASURED: dict[str, tuple[dict[str, Any], int, tuple[float, ...] | None]] = {
    "w18_ee": (W18 | {"pooled_dim": None, "threshold": None}, 4_033_556, (31.44, 42.56, 59.53, 82.88)),
    "w18_ee_rh": (W18 | {"threshold": None}, 3_997_492, None),
    "w18_adpc": (W18, 3_997_635, (23.69, 34.74, 49.87, 73.23)),
    "w48_ee": (W48 | {"pooled_dim": None, "threshold": None}, 66_074_796, (48.44, 113.46, 388.88, 722.20)),
    "w48_ee_rh": (W48 | {"threshold": None}, 66_062_700, None),
    "w48_adpc": (W48, 66_062_998, (41.92, 105.56, 368.03, 701.35)),
}


class Chosen(ADPC):
    """ADP-C that is unsure where it is told to be."""

    def __init__(self, masks: list[Tensor], **options: Any) -> None:
        super().__init__(**(TINY | options))
        self.masks = masks

    def unsure(self, exit: int, logits: Tensor) -> Tensor:
        return self.masks[exit]


@pytest.mark.parametrize("row", MEASURED)
def test_size_and_costs_are_those_of_the_published_network(row: str) -> None:
    options, params, macs = MEASURED[row]
    with torch.device("meta"):
        network = ADPC(**options)
    assert parameter_count(network) == params
    if macs is not None:
        assert [round(cost / 2**30, 2) for cost in exit_costs(network, FULL)] == list(macs)


@pytest.mark.parametrize(("stages", "params", "convs"), [("w18_small_v2", 3_939_579, 143), ("w48", 65_859_379, 298)])
def test_size_without_exits_and_number_of_masked_convolutions(stages: str, params: int, convs: int) -> None:
    with torch.device("meta"):
        assert parameter_count(HRNetSegmenter(stages=stages)) == params
        network = ADPC(stages=stages)
    assert sum(isinstance(module, MaskedConv2d) for module in network.modules()) == convs


@pytest.mark.parametrize(
    ("batch", "size", "kept"),
    [
        (2, (256, 320), (0.5, 0.3, 0.1)),
        (1, (256, 384), (0.2, 0.05, 0.002)),
        (1, (96, 160), (0.3, 0.3, 0.3)),
        (3, (64, 64), (0.9, 0.5, 0.1)),
        (1, (128, 128), (0.5, 0.0, 0.0)),
        (1, (64, 64), (1.0, 1.0, 1.0)),
    ],
)
@pytest.mark.parametrize("pooled_dim", [6, None])
@pytest.mark.parametrize("falloff", [3.0, 0.6])
def test_skipped_pixels_change_no_result(
    batch: int, size: tuple[int, int], kept: tuple[float, ...], pooled_dim: int | None, falloff: float
) -> None:
    torch.manual_seed(0)
    masks = blobs(batch, (size[0] // 4, size[1] // 4), kept)
    network = settled(Chosen(masks, pooled_dim=pooled_dim))
    for module in network.modules():
        if isinstance(module, MaskedConv2d):
            module.falloff.data.fill_(falloff)
    images = torch.randn(batch, 3, *size)
    with torch.no_grad():
        skipping = list(iterate(network, images))
        network.skip = False
        masked = list(iterate(network, images))
    for ours, reference in zip(skipping, masked, strict=True):
        assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()
    for before, after, mask in zip(skipping, skipping[1:], masks, strict=False):
        assert torch.equal((after != before).any(1), mask)


def test_skipping_executes_less_and_records_what_it_kept() -> None:
    masks = blobs(1, (64, 96), (0.3, 0.1, 0.02))
    network = settled(Chosen(masks))
    images = torch.randn(1, 3, 256, 384)
    with torch.no_grad():
        costs = [macs for _, macs in executed_by_parts(iterate(network, images), len(images))]
    assert costs == sorted(costs)
    ran = executed(network, images)
    assert costs[-1] == ran.macs
    # Interpolation of what is skipped, and upsampling to tiles.
    assert 0 < ran.matmul_macs < 0.01 * ran.conv_macs
    assert ran.linear_macs == 0
    dense = exit_costs(network, (3, 256, 384))
    assert costs[0] == dense[0]
    # Maps of a sixteenth of the resolution are too small for tiles here.
    assert costs[3] - costs[2] < 0.35 * (dense[3] - dense[2])
    static = static_macs(network, (3, 256, 384))
    with torch.no_grad():
        network(images)
    kept = expected(network, static)
    assert kept.dense_macs == pytest.approx(dense[3])
    shares = [entry.expected.item() / entry.dense for name, entry in kept.layers.items() if "stage4" in name]
    assert max(shares) < 0.06
    assert static < kept.macs.item() < costs[3]


def test_published_count_is_dense_cost_times_share_and_interpolation() -> None:
    size, side = (3, 128, 192), (32, 48)
    # At every resolution, an eighth of the pixels of each row.
    mask = (torch.arange(side[1]) < side[1] // 8).expand(2, *side)
    network = settled(Chosen([torch.ones_like(mask), torch.ones_like(mask), mask]))
    dense = exit_costs(network, size)
    images = torch.randn(2, *size)
    with torch.no_grad():
        network(images)
    published = network.published_macs(size)
    assert published[:3] == dense[:3]
    interpolated = [0]

    def add(module: MaskedConv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        share = inputs[1].share.mean().item()
        interpolated[0] += (
            share * (1 - share) * output[0].numel() * 49 + share * output[0].numel() * module.weight[0].numel()
        )

    network.skip = False
    for name, module in network.named_modules():
        if isinstance(module, MaskedConv2d) and ("stage4" in name or "transition3" in name or "exits.3" in name):
            module.register_forward_hook(add)
    with torch.no_grad():
        network(images)
    assert published[3] - published[2] == pytest.approx(interpolated[0], rel=1e-3)


def test_exits_without_a_pixel_left_cost_nothing_whatever_ran_before() -> None:
    size, side = (3, 64, 64), (16, 16)
    all_kept, none_kept = torch.ones(1, *side, dtype=torch.bool), torch.zeros(1, *side, dtype=torch.bool)
    network = settled(Chosen([all_kept, all_kept, all_kept]))
    images = torch.randn(1, *size)
    with torch.no_grad():
        list(iterate(network, images))
        assert network.published_macs(size) == network.dense_macs(size) == exit_costs(network, size)
        network.masks = [all_kept, none_kept, none_kept]
        list(iterate(network, images))
        # A second look finds the same: counting the dense network does not disturb what was recorded.
        for _ in range(2):
            costs = network.published_macs(size)
            assert costs[:2] == network.dense_macs(size)[:2]
            assert costs[1] == costs[2] == costs[3]
        network.masks = [all_kept, all_kept, all_kept]
        list(iterate(network, images))
        assert network.published_macs(size) == network.dense_macs(size)


def test_a_later_threshold_does_not_bring_pixels_back() -> None:
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    network = settled(ADPC(**TINY, threshold=1.0))
    with torch.no_grad():
        confidence = next(iterate(network, images)).softmax(1).amax(1)
        network.thresholds = (confidence.median().item(), 1.0, 1.0)
        first, *later = iterate(network, images)
        skipped = confidence > confidence.median()
        assert skipped.any()
        assert not skipped.all()
        for logits in later:
            assert torch.equal((logits != first).any(1), ~skipped)


def test_what_no_exit_asks_for_does_not_run() -> None:
    network = settled(ADPC(**TINY))
    images = torch.randn(1, 3, 64, 64)
    ran: list[int] = []
    for number in (1, 2, 3):
        network.get_submodule(f"backbone.stage{number + 1}").get_submodule("0").register_forward_hook(
            lambda *_, number=number: ran.append(number)
        )
    with torch.no_grad():
        every = list(iterate(network, images))
        ran.clear()
        exits = iterate(network, images)
        reached = [next(exits), next(exits)]
    assert ran == [1]
    assert all(torch.equal(ours, reference) for ours, reference in zip(reached, every, strict=False))


def test_forward_gives_each_exit_at_the_resolution_of_the_images() -> None:
    images = torch.randn(2, 3, 64, 96)
    for network in (ADPC(**TINY), HRNetSegmenter(5, TINY["stages"])):
        for mode in (True, False):
            logits = network.train(mode)(images)
            exits = logits if isinstance(logits, list) else [logits]
            assert [tuple(x.shape) for x in exits] == [(2, 5, 64, 96)] * (4 if isinstance(logits, list) else 1)


def test_every_parameter_gets_a_gradient() -> None:
    network = ADPC(**TINY, threshold=0.4).train()
    torch.stack([x.square().mean() for x in network(torch.randn(2, 3, 64, 64))]).sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_runs_in_reduced_precision_as_it_does_in_full() -> None:
    torch.manual_seed(0)
    network = settled(Chosen(blobs(1, (64, 96), (0.4, 0.2, 0.1))))
    images = torch.randn(1, 3, 256, 384)
    with torch.no_grad():
        full = list(iterate(network, images))
        with torch.autocast("cpu", torch.bfloat16):
            reduced = list(iterate(network, images))
    for ours, reference in zip(reduced, full, strict=True):
        assert ours.isfinite().all()
        assert (ours - reference).abs().max() < 0.1 * reference.abs().max()


def test_branches_beside_each_other_have_the_size_of_the_finest() -> None:
    maps = HRNet(TINY["stages"]).eval()(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, 4, 16, 24), (1, 6, 8, 12), (1, 8, 4, 6), (1, 10, 2, 3)]
    assert concatenate(maps).shape == (1, 28, 16, 24)
    assert count(HRNet(TINY["stages"]), (3, 64, 96)).macs > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": "w18"}, "no HRNet is called 'w18'; there are: w18_small_v2, w32, w48"),
        ({"stages": TINY["stages"][:3]}, "must be four rows"),
        ({"stages": [(2, [1], [4]), *TINY["stages"][1:]]}, "one module in the first"),
        ({"stages": [*TINY["stages"][:3], (1, [1] * 3, [4, 6, 8, 10])]}, "1, 2, 3 and 4 branches"),
        ({"num_classes": 1}, "num_classes=1 must be at least 2"),
        ({"pooled_dim": 0}, "pooled_dim=0 must be positive"),
        ({"threshold": [0.9, 0.9]}, "one for each of the first 3 exits"),
        ({"threshold": float("nan")}, "must be one number"),
        ({"criterion": "variance"}, "no confidence criterion"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ADPC(**(TINY | options))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="64x80 pixels: height and width must be multiples of 32"):
        ADPC(**TINY)(torch.randn(1, 3, 64, 80))


@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 1), (1, 2), (3, 3)])
def test_masked_convolutions_that_are_not_possible_are_refused(kernel_size: int, stride: int) -> None:
    with pytest.raises(ValueError, match="a masked convolution of"):
        MaskedConv2d(3, 4, kernel_size, stride)
