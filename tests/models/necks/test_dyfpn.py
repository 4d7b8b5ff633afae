"""DyFPN: published sizes, what is computed, for whom, what is recorded of it, and what training does to the gates."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from models.compute import count, executed, expected, flop_counter, parameter_count, recorded
from models.decisions import noted
from models.detectors import FasterRCNN
from models.necks import DyFPN, InceptionFPN
from models.necks.gates import GateName
from models.necks.inception import BRANCHES

# Channels of ResNet-50, and its maps at 800 x 1280.
R50, SIZES = [256, 512, 1024, 2048], [(200, 320), (100, 160), (50, 80), (25, 40)]
# 1e9 multiply-adds of the block of each level there.
BLOCKS = [432.01, 216.01, 108.00, 54.00]
CHANS, WIDTH = [4, 8, 8], 5


def maps(batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(chans, 16 >> i, 24 >> i) for i, chans in enumerate(CHANS)]
    return [torch.randn(batch, *size, generator=generator) for size in sizes]


def neck(**options: Any) -> DyFPN:
    torch.manual_seed(0)
    built = DyFPN(CHANS, WIDTH, "pool", **{"eval_gate": "sample"} | options)
    for module in built.gates.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return built.eval()


def noise(options: int, batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [3 * torch.randn(batch, options, generator=generator) for _ in CHANS]


@pytest.mark.parametrize(
    ("build", "params", "macs"),
    [
        (partial(DyFPN), 106_000_200, 868.02),
        (partial(InceptionFPN), 106_000_200 - 1_395_528, 868.02),
    ],
)
def test_neck_has_the_published_size(build: Any, params: int, macs: float) -> None:
    with torch.device("meta"):
        network = build(R50, 256, "pool").eval()
        features = [torch.empty(1, chans, *size) for chans, size in zip(R50, SIZES, strict=True)]
        with flop_counter() as counter:
            network(features)
    assert parameter_count(network) == params
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, abs=6e-3)
    if isinstance(network, DyFPN):
        assert [layer.dense / 1e9 for layer in recorded(network).values()] == pytest.approx(BLOCKS, abs=6e-3)
        assert {layer.least for layer in recorded(network).values()} == {0.0}
        assert parameter_count(network.gates) == 1_395_528


def test_detector_has_the_published_size() -> None:
    with torch.device("meta"):
        network = FasterRCNN("resnet50", 80, neck=DyFPN)
    report = count(network, (3, 800, 1280))
    # Batch norms of the backbone are constants here.
    assert report.params == 144_408_872 - 53_120
    assert report.macs / 1e9 == pytest.approx(1016.36 + 0.0014, abs=6e-3)


@pytest.mark.parametrize("structure", ["A", "B"])
def test_published_costs_are_those_of_the_maps_at_1216x800(structure: Any) -> None:
    published = {
        "B": [[0, 820.7], [0, 410.5], [0, 205.1], [0, 102.7]],
        "A": [[8 / 2**i, *[71.7 / 2**i] * 3, *[199.2 / 2**i] * 3] for i in range(4)],
    }[structure]
    with torch.device("meta"):
        features = [torch.empty(1, chans, 200 >> i, 304 >> i) for i, chans in enumerate(R50)]
        network = DyFPN(R50, 256, "pool", structure=structure).eval()
        network(features)
        measured = recorded(network)
        network = DyFPN(R50, 256, "pool", structure=structure, costs=published).eval()
        network(features)
    for ours, theirs, row in zip(measured.values(), recorded(network).values(), published, strict=True):
        assert theirs.dense == 0.5e9 * max(row)
        # The published numbers have one decimal.
        assert ours.dense == pytest.approx(theirs.dense, rel=2e-3)
        assert ours.least == pytest.approx(theirs.least, rel=2e-2)


@torch.no_grad()
@pytest.mark.parametrize("structure", ["A", "B"])
def test_what_is_closed_for_an_image_is_not_computed(structure: Any) -> None:
    network, draws = neck(structure=structure), noise(2 if structure == "B" else 7)
    with flop_counter() as counter:
        levels = network(maps(), draws)
    by_module = counter.get_flop_counts()
    gates = network.choose(network.scores(maps()), draws)
    choices = noted(network)[""].values
    assert torch.equal(choices, torch.stack([gate.argmax(1) for gate in gates], 1))
    assert len(choices.unique(dim=0)) > 1
    for level, (own, chans) in enumerate(zip(choices.T.tolist(), CHANS, strict=True)):
        for branch, (kernel, _) in enumerate(BRANCHES):
            ran = sum(by_module.get(f"DyFPN.blocks.{level}.{branch}", {}).values())
            images = own.count(1 if structure == "B" else branch)
            assert ran == images * 2 * kernel**2 * chans * WIDTH * (16 >> level) * (24 >> level)
    # The sum over images of what is recorded, exactly.
    ran = sum(sum(by_module.get(f"DyFPN.blocks.{level}", {}).values()) for level in range(len(CHANS)))
    assert expected(network, 0.0).macs.sum().item() == ran / 2
    # Everything, times its gate.
    dense = network.levels(maps(), network._dense(maps(), gates))
    for x, y in zip(levels, dense, strict=True):
        torch.testing.assert_close(x, y)


@torch.no_grad()
@pytest.mark.parametrize("structure", ["A", "B"])
def test_an_image_does_not_depend_on_its_batch(structure: Any) -> None:
    network, draws = neck(structure=structure), noise(2 if structure == "B" else 7)
    together = network(maps(), draws)
    for image in range(4):
        alone = network([x[image : image + 1] for x in maps()], [x[image : image + 1] for x in draws])
        for x, y in zip(together, alone, strict=True):
            torch.testing.assert_close(x[image : image + 1], y)


@torch.no_grad()
def test_a_graph_without_decisions_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = neck(eval_gate="argmax")
    sparse = network(maps())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with flop_counter() as counter:
        dense = network(maps())
    assert sum(counter.get_flop_counts()["DyFPN.blocks.0"].values()) == 8 * network.macs[0][1] * 16 * 24
    for x, y in zip(sparse, dense, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("structure", ["A", "B"])
@pytest.mark.parametrize("gate", [name for name in get_args(GateName) if name != "random"])
def test_loss_and_budget_reach_every_parameter(gate: Any, structure: Any) -> None:
    network = neck(gate=gate, structure=structure).train()
    network(maps())[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.blocks.parameters())
    network.zero_grad()
    network(maps())
    expected(network, 0.0).share.sum().backward()
    for parameter in network.gates.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert any(parameter.grad.abs().max() > 0 for parameter in network.gates.parameters())


def test_argmax_opens_as_often_as_samples_do() -> None:
    network = neck(eval_gate="argmax").train()
    features = maps(64)
    scores = [own.detach() - torch.tensor([0.0, 0.3]) for own in network.scores(features)]
    rates = torch.stack([own.softmax(1)[:, 1].mean() for own in scores])
    raw = torch.stack([own.argmax(1).float().mean() for own in scores])
    assert (rates - raw).abs().max() > 0.4
    for _ in range(400):
        network.choose(scores)
    opened = torch.stack([gate[:, 1].mean() for gate in network.eval().choose(scores)])
    assert (opened - rates).abs().max() < 0.1
    # Without a draw.
    assert torch.equal(torch.stack([gate[:, 1].mean() for gate in network.choose(scores)]), opened)


def test_blocks_start_open_and_random_gates_are_blind() -> None:
    torch.manual_seed(0)
    started = DyFPN(CHANS, WIDTH, "pool")
    assert all(gate.fc2.bias.tolist() == pytest.approx([0.1, 2.0]) for gate in started.gates)
    network = DyFPN(CHANS, WIDTH, "pool", gate="random", random_rate=0.3).eval()
    scores = network.scores([x.expand(3000, -1, -1, -1) for x in maps(1)])
    drawn = torch.stack([gate[:, 1] for gate in network.choose(scores)])
    assert (drawn.mean(1) - 0.3).abs().max() < 0.03
    assert not list(network.gates.parameters())


def test_half_precision_decides_in_full() -> None:
    network = neck()
    with torch.autocast("cpu", torch.bfloat16):
        levels = network(maps(), noise(2))
        scores = network.scores(maps())
    assert {own.dtype for own in scores} == {torch.float32}
    assert levels[0].dtype == torch.bfloat16
    assert expected(network, 0.0).macs.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "C"}, "structure must be one of A, B, not 'C'"),
        ({"gate": "vgg"}, "gate must be one of se, conv, gru_up"),
        ({"eval_gate": "soft"}, "eval_gate must be one of sample, argmax"),
        ({"gate": "random", "random_rate": 1.0}, r"in \(0, 1\), not 1.0"),
        ({"costs": [[0, 1]]}, "costs are 3 rows of 2, one for each level"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DyFPN(CHANS, WIDTH, "pool", **options)
    with pytest.raises(ValueError, match="maps of 3x3 pixels or more, not 2x6"):
        neck(gate="conv")([x[..., :2, :] if i == 2 else x for i, x in enumerate(maps())])


def test_executed_compute_is_that_of_the_mean_image() -> None:
    torch.manual_seed(0)
    network = FasterRCNN("plain_conv", 3, options={"widths": [8, 8, 8, 8]}, neck=DyFPN, fpn_chans=8, frozen_stages=0)
    network.neck.draws = True
    images = [torch.rand(3, 64, 64) for _ in range(3)]
    report = executed(network, images)
    ran = sum(module.macs for module in report.modules if module.name.startswith("neck.blocks.") and module.depth == 3)
    assert ran == pytest.approx(expected(network, 0.0).macs.mean().item(), rel=1e-6)
