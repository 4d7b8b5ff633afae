from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from models.anytime import MultiExit, Outcomes, Policy, confidence, exit_costs, run
from models.classifiers import RANet
from models.compute import parameter_count
from models.official import LayoutError, load
from models.official.ranet import LAYOUT
from tests.golden_builders.ranet import build
from tests.library.golden import open_vector, section
from tests.library.images import image_size
from tests.library.ranet_costs import CIFAR, CONFIGS, IMAGENET, MEASURED, SCRIPT
from tests.library.recipes import ROOT, built

TINY: dict[str, Any] = {"num_channels": 4, "growth_rate": 4, "step": 2, "head_width": 8}


@pytest.mark.parametrize("row", MEASURED)
def test_size_and_costs_are_the_published_ones(row: str) -> None:
    options, size, params, macs, official = MEASURED[row]
    with torch.device("meta"):
        network = RANet(**options)
    assert parameter_count(network) == params
    elementwise = count_elementwise(network)
    costs = [cost / 1e6 for cost in exit_costs(network, size)]
    assert network.num_exits == len(costs) == len(macs)
    # As many digits as were recorded.
    digits = 2 if size == CIFAR else 1
    for cost, expected in zip(costs, macs, strict=True):
        assert expected in (None, round(cost, digits))
    if official is not None:
        counted = [cost + extra / 1e6 for cost, extra in zip(costs, elementwise, strict=True)]
        # A few thousand operations beside the last digit: what else that counter counts is not recorded.
        assert counted == pytest.approx(official, rel=0, abs=0.55 * 10**-digits)


def count_elementwise(network: RANet) -> list[int]:
    """Fills in, at the next inference, how many elements were rectified, pooled or biased up to each exit."""
    counts, total = [], 0

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
            total += output.numel() * int(module.kernel_size) ** 2
        elif isinstance(module, nn.ReLU | nn.Linear):
            total += output.numel()

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(note)
    for head in network.heads:
        head.register_forward_hook(lambda *_: counts.append(total))
    return counts


@pytest.mark.parametrize("config", CONFIGS)
def test_configs_are_the_published_recipes(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cli = built(Path(f"configs/classification/{config}.yaml"))
    options, size, *_ = MEASURED[CONFIGS[config]]
    network, imagenet = cli.model.network, size == IMAGENET
    assert cli.plain["experiment"] == config
    assert image_size(cli.datamodule) == size
    given = cli.plain["model"]["init_args"]["network"]["init_args"]
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if name in options} == options
    optimizer = cli.model.main.optimizer([nn.Parameter(torch.zeros(1))]).defaults
    assert (optimizer["lr"], optimizer["weight_decay"], cli.model.exit_weights) == (0.1, 1e-4, "sum")
    assert (optimizer["momentum"], optimizer["nesterov"]) == (0.9, False)
    assert [group["weight_decay"] for group in cli.model.main.groups(0.1, 1e-4)] == [1e-4]
    batch, epochs, milestones = (256, 90, [30, 60]) if imagenet else (64, 300, [150, 225])
    assert cli.datamodule.batch_size == cli.model.reference_batch == batch
    assert cli.datamodule.holdout == (50_000 if imagenet else 5000)
    assert cli.trainer.max_epochs == epochs
    assert cli.model.main.schedule.milestones == milestones
    assert type(cli.datamodule).__name__ == ("ImageNet" if imagenet else f"CIFAR{network.num_classes}")


def tiny(**options: Any) -> RANet:
    torch.manual_seed(0)
    network = RANet(**TINY | options)
    # Statistics as after some training, so that exits disagree.
    network.train()
    for _ in range(3):
        network(torch.randn(16, 3, 32, 32))
    return network.eval()


@pytest.mark.parametrize("options", [{}, {"step_mode": "lg", "block_step": 1}, SCRIPT | {"growth_rate": 8}])
@torch.no_grad()
def test_compaction_is_the_simulation(options: dict[str, Any]) -> None:
    network = tiny(**options)
    assert isinstance(network, MultiExit)
    images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    every = network(images)
    sure = Outcomes.from_logits(every, torch.zeros(12, dtype=torch.long)).confidence
    # Between the two samples in the middle, so that float noise decides nothing.
    policy = Policy("max_prob", tuple(row.sort().values[5:7].mean().item() for row in sure))
    for min_leaving in (0.0, 0.3):
        logits, exits = run(network, images, policy, min_leaving)
        leaves = sure >= torch.tensor(policy.thresholds)[:, None]
        leaves[-1] = True
        expected = [int(column.nonzero()[0]) for column in leaves.T]
        assert exits.tolist() == expected
        assert len(set(expected)) > 2
        torch.testing.assert_close(
            logits, torch.stack([every[exit][n] for n, exit in enumerate(expected)]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("case", ["tiny_cifar", "tiny_imagenet"])
def test_compaction_gives_the_recorded_logits(case: str) -> None:
    vector = open_vector(ROOT / f"tests/golden/ranet/{case}.safetensors")
    tensors, network = vector.tensors, build(json.loads(vector.config)).eval()
    load(network, LAYOUT.to_ours(section(tensors, "state.")))
    every = [tensors[f"out.logits_eval_exit{exit + 1}"] for exit in range(network.num_exits)]
    # At the median but for the last digits, which may differ from the recorded ones.
    thresholds = tuple(confidence(logits).median().item() - 1e-5 for logits in every)
    logits, exits = run(network, tensors["in.x"], Policy("max_prob", thresholds))
    assert 0 < (exits > 0).sum() < len(exits)
    torch.testing.assert_close(
        logits, torch.stack([every[exit][n] for n, exit in enumerate(exits)]), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_exits_run_no_more_than_they_need() -> None:
    network = tiny()
    ran: list[str] = []
    for name, module in network.named_modules():
        if re.fullmatch(r"subnets\.\d\.\d|(heads|base)\.\d", name):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    state = network.start(torch.randn(1, 3, 32, 32))
    assert ran == ["base.0", "base.1", "base.2"]
    expected = [
        ["subnets.0.0"],
        ["subnets.0.1"],
        ["subnets.1.0", "subnets.1.1", "subnets.1.2"],
        ["subnets.1.3"],
        ["subnets.2.0", "subnets.2.1", "subnets.2.2", "subnets.2.3", "subnets.2.4"],
        ["subnets.2.5"],
    ]
    for exit, blocks in enumerate(expected):
        ran.clear()
        _, state = network.advance(exit, state)
        assert [name for name in ran if "subnets" in name] == blocks
        assert [name for name in ran if "heads" in name] == [f"heads.{exit}"]


@torch.no_grad()
def test_features_are_freed_when_they_were_read() -> None:
    network = tiny()
    state = network.start(torch.randn(2, 3, 32, 32))
    sizes = []
    for exit in range(network.num_exits):
        _, state = network.advance(exit, state)
        sizes.append({name: len(tree_leaves(value)) for name, value in state.items()})
    assert sizes == [
        {"base": 2, "x": 1, "low": 0, "emitted": 1},
        {"base": 2, "x": 0, "low": 0, "emitted": 2},
        # The second fusion block halves its maps, so it leaves one of each size.
        {"base": 1, "x": 1, "low": 0, "emitted": 4},
        {"base": 1, "x": 0, "low": 0, "emitted": 5},
        {"base": 0, "x": 1, "low": 0, "emitted": 0},
        {"base": 0, "x": 0, "low": 0, "emitted": 0},
    ]
    # Within an exit, too: when the last fusion block runs, what the ones before it read is gone.
    state = network.start(torch.randn(2, 3, 32, 32))
    for exit in range(4):
        _, state = network.advance(exit, state)
    first = [weakref.ref(tensor) for tensor in state["emitted"][0]]
    alive = []
    network.subnets[2][3].register_forward_pre_hook(lambda *_: alive.append(any(ref() is not None for ref in first)))
    gc.disable()
    network.advance(4, state)
    gc.enable()
    assert alive == [False]


def test_training_reaches_every_parameter() -> None:
    network = RANet(**TINY | {"step_mode": "lg"}).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(torch.randn(2, 3, 32, 32))
    torch.stack([each.float().logsumexp(1).mean() for each in logits]).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_initial_weights() -> None:
    torch.manual_seed(0)
    network = RANet(num_channels=32, growth_rate=16)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 4 and parameter.numel() > 4000 and not name.startswith("base"):
            out = parameter.shape[0] * parameter.shape[2] * parameter.shape[3]
            assert parameter.std().item() == pytest.approx((2 / out) ** 0.5, rel=0.1), name
    assert all(not head.linear.bias.any() for head in network.heads)
    first = network.base[0][0].weight
    assert first.abs().max() <= (1 / 27) ** 0.5


def test_any_device_dtype_and_classes() -> None:
    with torch.device("meta"):
        network = RANet(**TINY | {"num_classes": 7, "in_chans": 1})
    assert [logits.shape for logits in network(torch.empty(2, 1, 32, 32, device="meta"))] == [(2, 7)] * 6
    assert (network.num_classes, network.in_chans) == (7, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth_rate": 3}, r"growth_rate \* growth_factors\[2\] must be at least 4"),
        ({"step": 1}, "at least 2 layers"),
        ({"scales": (1, 2)}, "scales 2, growth_factors 3, bottleneck_factors 3"),
        ({"scales": ()}, "scales 0"),
        ({"scales": (1, 1, 2)}, r"such as \[1, 2, 3\]"),
        ({"stem": "digits"}, "none of cifar, imagenet"),
        ({"step_mode": "log"}, "none of even, lg"),
        ({"reduction": 0.0}, "above 0 and at most 1"),
        ({"reduction": 0.001}, "leaves nothing of"),
        ({"compress": 1.0}, "between 0 and 1"),
        ({"num_blocks": 0}, "num_blocks=0 must be 1 or more"),
        ({"growth_factors": (4, 2, 0)}, "growth_factors"),
        ({"head_width": 0}, "head_width=0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        RANet(**TINY | options)


def test_step_one_without_fusion_is_allowed() -> None:
    with torch.device("meta"):
        network = RANet(step=1, scales=(1,), growth_factors=(1,), bottleneck_factors=(1,), growth_rate=1)
    assert network.num_exits == 2


def test_images_of_a_wrong_size_are_refused() -> None:
    with torch.device("meta"):
        network = RANet(**TINY)
    with pytest.raises(ValueError, match="maps of 16x16"):
        network(torch.empty(1, 3, 64, 64, device="meta"))


def test_official_layout_must_be_complete() -> None:
    with torch.device("meta"):
        state = RANet(**TINY).state_dict()
    changes: dict[str, Callable[[dict[str, Tensor]], Any]] = {
        "missing scale_flows.1.0.layers.0.conv_up.net.4.running_var": lambda weights: weights.pop(
            "scale_flows.1.0.layers.0.conv_up.net.4.running_var"
        ),
        "missing classifier.2.linear.bias": lambda weights: weights.pop("classifier.2.linear.bias"),
        "missing FirstLayer.layers.1.net.0.weight": lambda weights: weights.pop("FirstLayer.layers.1.net.0.weight"),
        "unknown decoder.weight": lambda weights: weights.update({"decoder.weight": torch.zeros(1)}),
        "missing scale_flows.0.0.layers.0.conv_up.net.0.weight": lambda weights: weights.update(
            {"scale_flows.0.0.conv_last.net.0.weight": torch.zeros(1)}
        ),
    }
    for complaint, change in changes.items():
        weights = LAYOUT.to_official(state)
        change(weights)
        with pytest.raises(LayoutError, match=complaint):
            LAYOUT.to_ours(weights)
    with pytest.raises(LayoutError, match="missing subnets"):
        LAYOUT.to_official({key: value for key, value in state.items() if key != "subnets.2.5.layers.1.own.3.weight"})
