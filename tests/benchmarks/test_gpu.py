"""What is ready for a GPU: waits of the host that are counted, graphs that are whole, and bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import difference, prepared, row, waits
from benchmarks.gpu_systems import SYSTEMS
from models.host_waits import HostWaits
from models.layers.cond_conv import CondConv2d
from models.layers.deformable_attention import Levels, weighted_samples
from models.layers.occurrences import occurrences
from models.segmenters.dynamic_routing import DynamicRouting

QUICK = ("deformable sampling", "per-sample convolution", "ConvNeXt", "early exit")


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.waits is not None])
def test_the_host_waits_once_a_decision(name: str) -> None:
    seen = waits(*prepared(SYSTEMS[name], True))
    assert seen.total == SYSTEMS[name].waits, seen.seen


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in SYSTEMS])
def test_every_check_of_the_table_passes(name: str) -> None:
    line, fine = row(name, SYSTEMS[name], torch.device("cpu"), True)
    assert fine, line


def test_each_layer_of_condconv_alone_keeps_close_to_float32() -> None:
    network, inputs = prepared(SYSTEMS["CondConv"], True)
    apart: list[float] = []

    def again(layer: CondConv2d, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            apart.append(difference(layer.forward(*arguments), output))

    layers = [layer for layer in network.modules() if isinstance(layer, CondConv2d)]
    for layer in layers:
        layer.register_forward_hook(again)
    with torch.no_grad():
        network(*inputs)
    assert len(apart) == len(layers) > 10
    assert max(apart) < 0.02


def test_a_network_of_cells_waits_once_a_cell() -> None:
    network, inputs = prepared(SYSTEMS["Dynamic Routing"], True)
    assert isinstance(network, DynamicRouting)
    assert 0 < waits(network, inputs).total <= len(list(network.cells()))


def test_sampling_waits_for_nothing_with_its_gradient() -> None:
    levels = Levels.of([(4, 5), (2, 3)], torch.device("cpu"))
    value, x, y, weights = (torch.rand(shape, requires_grad=True) for shape in ((1, 26, 2, 4), *[(1, 3, 2, 4)] * 3))
    with HostWaits() as seen:
        weighted_samples(value, levels, x, y, weights).sum().backward()
    assert seen.total == 0, seen.seen


def test_what_waits_is_seen() -> None:
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    cases = {
        "item": lambda: x[0].item(),
        "if": lambda: bool(x[0] > 1),
        "nonzero": lambda: mask.nonzero(),
        "by a mask": lambda: x[mask],
        "tolist": lambda: x.tolist(),
        "numpy of the host": lambda: x.cpu().numpy(),
        "bincount": lambda: x.long().bincount(),
    }
    for name, wait in cases.items():
        with HostWaits() as seen:
            wait()
        assert seen.total == 1, (name, seen.seen)
    with HostWaits() as seen:
        x.masked_fill(mask, 0.0)
        x.clone()[mask] = 0.0
        torch.nn.functional.one_hot(x.long(), 4)
        mask.nonzero_static(size=2)
        occurrences(x.long(), 5)
    assert seen.total == 0, seen.seen


def test_occurrences_are_those_of_bincount() -> None:
    numbers = torch.randint(7, (3, 50), generator=torch.Generator().manual_seed(0))
    assert occurrences(numbers, 9).equal(numbers.flatten().bincount(minlength=9))


def test_a_difference_is_a_share_of_the_largest_value() -> None:
    expected = [torch.tensor([1.0, -4.0]), torch.tensor([2])]
    assert difference([torch.tensor([1.0, -3.0]), torch.tensor([3])], expected) == 0.25
    assert difference([torch.tensor([torch.nan, -4.0]), torch.tensor([2])], expected) == float("inf")
