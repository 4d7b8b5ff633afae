"""DRNet: selection, both gradient routes, norms of a resolution's own, costs, conversion and its small experiment."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifiers.drnet import DRNet, ResolutionPredictor
from models.compute import count, executed, expected, parameter_count, recorded, static_macs
from models.layers.resize import resize
from models.layers.resolution_bn import ResolutionBatchNorm, swap_batch_norms
from models.official import LayoutError, load, system_of
from models.official.drnet import LAYOUT


def tiny_resnet(num_classes: int = 5) -> nn.Module:
    # Residual branches that start at zero have gradients of zero.
    options = {"layers": (1, 1, 1, 1), "channels": (4, 8, 8, 8), "zero_init_last": False}
    return timm.create_model("resnet50", num_classes=num_classes, **options)


def tiny(**options: Any) -> DRNet:
    torch.manual_seed(0)
    options = {"candidates": (64, 48, 32), "predictor_size": 32, **options}
    host = options.pop("host", None) or tiny_resnet()
    return DRNet(host, ResolutionPredictor(len(options["candidates"]), (4, 8)), **options)


def photos(number: int = 12, size: int = 64) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(3))


class Scores(nn.Module):
    """A predictor that scores image i by row i of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.num_classes = table.shape[1]
        self.table = nn.Parameter(table)

    def forward(self, images: Tensor) -> Tensor:
        return self.table[: len(images)] * 1


def choosing(network: DRNet, choices: list[int]) -> DRNet:
    """The network with a predictor that insists on these choices, whatever the noise."""
    network.predictor = Scores(100.0 * F.one_hot(torch.tensor(choices), len(network.candidates)).float())
    return network


def norms(network: DRNet) -> Iterator[ResolutionBatchNorm]:
    return (module for module in network.modules() if isinstance(module, ResolutionBatchNorm))


# Parameters: arXiv 2106.02898 counted exactly (the sheet). Multiply-adds: at 224, 168 and 112.
@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("resnet50", 25_663_272, (4.089, 2.503, 1.078)),
        ("resnet101", 44_759_848, ()),
        ("mobilenetv2_100", None, (0.301, 0.189, 0.082)),
    ],
)
def test_published_hosts(name: str, params: int | None, macs: tuple[float, ...]) -> None:
    with torch.device("meta"):
        network = DRNet(timm.create_model(name))
    if params:
        assert parameter_count(network.classifier) == params
    assert [cost / 1e9 for cost in network.costs[: len(macs)]] == pytest.approx(macs, abs=5.1e-4)
    assert parameter_count(network.predictor) == 4_907_331
    # Dense is the predictor and the host at its largest resolution.
    report = count(network)
    predictor = next(module.macs for module in report.modules if module.name == "predictor")
    assert predictor / 1e9 == pytest.approx(0.2902, abs=5.1e-5)
    assert report.macs == predictor + network.dense
    assert static_macs(network) == predictor


def test_predictor_for_mobilenet_has_about_the_published_size() -> None:
    predictor = ResolutionPredictor(3, (24, 32, 64, 96, 192), "inverted")
    assert parameter_count(predictor) / 1e6 == pytest.approx(0.3, abs=0.05)
    assert predictor(photos(2)).shape == (2, 3)


def test_samples_follow_the_scores() -> None:
    network = tiny()
    torch.manual_seed(0)
    scores = torch.tensor([0.6, 0.3, 0.1]).log().expand(20_000, 3)
    torch.testing.assert_close(network.selection(scores).mean(0), torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0)


def test_each_image_is_classified_at_its_own_resolution() -> None:
    network, images = choosing(tiny(), [2, 0, 0, 1, 2, 0, 1, 0, 2, 2, 0, 0]).eval(), photos()
    logits = network(images)
    choices = network.predictor.table.argmax(1)
    for i, j in enumerate(choices.tolist()):
        alone = network.classify(images[i : i + 1], j)
        torch.testing.assert_close(logits[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    # Work that was skipped did not run, and what ran is what the choices cost.
    ran = executed(network, images).macs
    assert ran == pytest.approx(sum(network.costs[j] for j in choices) / len(images))
    network(images)
    torch.testing.assert_close(expected(network, 0.0).macs.mean().item(), ran)


def test_shared_norms_are_the_hosts() -> None:
    network = tiny(resolution_bn=False)
    assert not list(norms(network))
    assert parameter_count(network.classifier) == parameter_count(tiny_resnet())
    choosing(network, [0, 0, 2, 2]).train()(photos(4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_both_routes_agree_where_they_should() -> None:
    choices, images = [2, 0, 1, 1, 2, 0], photos(6)
    outputs, gradients = [], []
    for route in ("split", "mix"):
        # Norms that use running statistics do not tell who else is in the batch.
        network = choosing(tiny(route=route, temperature=50.0), choices).train()
        network.classifier.eval()
        torch.manual_seed(1)
        logits = network(images)
        logits.square().sum().backward()
        outputs.append(logits)
        gradients.append((network.predictor.table.grad, network.classifier.fc.weight.grad))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-3, atol=1e-4)
    # The scores learn from all candidates in one, from the chosen one in the other.
    assert gradients[0][0].abs().min() > 0
    assert not torch.allclose(gradients[0][0], gradients[1][0], rtol=0.1)


def test_split_gradient_is_that_of_the_chosen_entry() -> None:
    choices, images = torch.tensor([0, 1, 2, 0, 1, 2]), photos(6)
    network = choosing(tiny(temperature=30.0), choices.tolist()).train()
    network.classifier.eval()
    with patch.object(torch, "rand_like", lambda scores: torch.full_like(scores, 0.5)):
        logits = network(images)
    logits.sum().backward()
    table = network.predictor.table.detach().requires_grad_()
    shares = (table / 30.0).softmax(1).gather(1, choices[:, None])
    (gradient,) = torch.autograd.grad((shares * logits.detach()).sum(), table)
    torch.testing.assert_close(network.predictor.table.grad, gradient)


def test_norms_of_a_resolution_see_only_its_images() -> None:
    choices, images = [0] * 4 + [2] * 7 + [1], photos()
    network = choosing(tiny(), choices).train()
    before = copy.deepcopy(network.state_dict())
    network(images)
    stem = network.classifier.bn1
    for j, members in ((0, images[:4]), (2, images[4:11])):
        features = network.classifier.conv1(resize(members, network.candidates[j], "antialiased"))
        mean = features.mean((0, 2, 3))
        torch.testing.assert_close(stem.sets[j].running_mean, 0.1 * mean, rtol=1e-4, atol=1e-6)
    # A single image has no statistics worth counting.
    for name, value in network.state_dict().items():
        if ".sets.1." in name:
            assert torch.equal(value, before[name]), name


def test_mix_counts_every_image_at_every_resolution() -> None:
    network, images = choosing(tiny(route="mix"), [0] * 6).train(), photos(6)
    network(images)
    for j, size in enumerate(network.candidates):
        mean = network.classifier.conv1(resize(images, size, "antialiased")).mean((0, 2, 3))
        torch.testing.assert_close(network.classifier.bn1.sets[j].running_mean, 0.1 * mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("choices", [[0] * 6, [1] * 5 + [2], [0, 1, 2, 2, 2, 2], [2]])
@pytest.mark.parametrize("route", ["split", "mix"])
def test_every_parameter_gets_a_gradient_whoever_is_chosen(choices: list[int], route: str) -> None:
    network = choosing(tiny(route=route), choices).train()
    network(photos(len(choices))).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    absent = set(range(3)) - set(choices)
    if route == "split":
        for norm in norms(network):
            assert all(norm.sets[j].weight.grad.abs().sum() == 0 for j in absent)
            assert all(norm.sets[j].bias.grad.abs().sum() > 0 for j in set(choices))


def train_on_process(rank: int, folder: str) -> None:
    """Two processes whose images choose different resolutions."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = choosing(tiny(shortcut_bn="first"), [0] * 4).train()
    parallel = nn.parallel.DistributedDataParallel(network)
    # Wrapping gave both processes the first one's parameters.
    choosing_now = torch.tensor([[0, 0, 0, 0], [2, 2, 2, 1]][rank])
    network.predictor.table.data = 100.0 * F.one_hot(choosing_now, 3).float()
    for _ in range(2):
        # The second forward pass is refused if a parameter had no part in the first.
        parallel(photos(4) + rank).square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    torch.save(gradients, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_data_parallel_training_with_different_choices(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_on_process, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name])
    for j in range(3):
        assert first[f"classifier.bn1.sets.{j}.bias"].abs().sum() > 0


def test_dead_sets_of_shared_shortcuts_are_not_trained() -> None:
    network = choosing(tiny(shortcut_bn="first"), [1, 1, 2, 2]).train()
    network(photos(4)).square().sum().backward()
    dead = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert dead == {n for n, _ in network.named_parameters() if ".downsample.1.sets." in n and ".sets.0." not in n}
    assert dead == {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert dead


def test_expected_compute_teaches_the_predictor() -> None:
    network = choosing(tiny(temperature=50.0), [0, 2, 1, 0]).train()
    network(photos(4))
    compute = recorded(network)["classifier"]
    assert compute.dense == max(network.costs)
    assert compute.least == min(network.costs)
    torch.testing.assert_close(compute.expected, torch.tensor([network.costs[j] for j in (0, 2, 1, 0)]))
    compute.expected.sum().backward()
    gradient = network.predictor.table.grad
    # Descending makes the dearest candidate less likely, and the cheapest more.
    assert (gradient[:, 0] > 0).all()
    assert (gradient[:, 2] < 0).all()


def test_pretraining_returns_every_resolution_cheapest_first() -> None:
    network, images = tiny(phase="pretrain", candidates=(32, 64, 48)).eval(), photos(3)
    exits = network(images)
    for j, logits in zip((0, 2, 1), exits, strict=True):
        torch.testing.assert_close(logits, network.classify(images, j))
    assert not any(parameter.requires_grad for parameter in network.predictor.parameters())
    assert network.state_dict().keys() == tiny(candidates=(32, 64, 48)).state_dict().keys()
    network.train()
    sum(logits.sum() for logits in network(images)).backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in network.named_parameters() if name.startswith("classifier.")}


def test_shuffled_choices_spend_as_much() -> None:
    choices, images = [0] * 3 + [1] * 4 + [2] * 5, photos()
    network = choosing(tiny(inference="shuffled"), choices).eval()
    torch.manual_seed(0)
    network(images)
    spent = recorded(network)["classifier"].expected
    paid = torch.tensor([network.costs[j] for j in choices])
    assert not torch.equal(spent, paid)
    torch.testing.assert_close(spent.sort().values, paid.sort().values)


def test_noisy_inference_follows_the_generator() -> None:
    network, images = tiny(inference="gumbel").eval(), photos()
    network.predictor = Scores(torch.zeros(12, 3))
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        network(images)
        draws.append(recorded(network)["classifier"].expected)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", ["mobilenetv2_035", "resnet18", "regnetx_002", "mobilenetv3_small_050"])
def test_any_host_with_batch_norms(name: str) -> None:
    torch.manual_seed(0)
    host = timm.create_model(name, num_classes=4).eval()
    alone = copy.deepcopy(host)
    network = DRNet(host, ResolutionPredictor(2, (4, 8)), (48, 32), 32).eval()
    images = photos(2, 48)
    with torch.no_grad():
        torch.testing.assert_close(network.classify(images, 0), alone(images))
        torch.testing.assert_close(network.classify(images, 1), alone(resize(images, (32, 32), "antialiased")))
    assert not any(
        isinstance(module, nn.BatchNorm2d) and ".sets." not in name
        for name, module in network.classifier.named_modules()
    )


def test_bf16_autocast_trains() -> None:
    network = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(network(photos()).float(), torch.arange(12) % 5)
    loss.backward()
    assert recorded(network)["classifier"].expected.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_synchronised_norms_are_refused_where_they_would_hang() -> None:
    network = nn.SyncBatchNorm.convert_sync_batchnorm(tiny())
    with pytest.raises(RuntimeError, match="would wait for ever"):
        network.train()(photos(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phase": "both"}, "phase must be one of pretrain, joint"),
        ({"route": "sum"}, "route must be one of split, mix"),
        ({"inference": "soft"}, "inference must be one of argmax, gumbel, shuffled"),
        ({"shortcut_bn": "last"}, "shortcut_bn must be one of own, first"),
        ({"resize_mode": "bicubic"}, "resize_mode must be one of antialiased, official"),
        ({"candidates": (64,)}, "at least two different"),
        ({"candidates": (64, 64, 32)}, "at least two different"),
        ({"candidates": (64, 0)}, "must be positive"),
        ({"predictor_size": 0}, "must be positive"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"predictor": ResolutionPredictor(4, (4,))}, "scores 4 candidates, but there are 3"),
        ({"host": nn.Conv2d(3, 4, 1)}, "no attribute num_classes"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    host = options.get("host") or tiny_resnet()
    with pytest.raises(ValueError, match=message):
        DRNet(
            host,
            **{"predictor_size": 32, "candidates": (64, 48, 32)} | {k: v for k, v in options.items() if k != "host"},
        )


def test_hosts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no batch norm to make resolution-aware"):
        swap_batch_norms(timm.create_model("convnext_atto"), 2)
    with pytest.raises(ValueError, match="no batch norm in a downsample or shortcut"):
        DRNet(timm.create_model("mobilenetv2_035"), shortcut_bn="first")
    with pytest.raises(ValueError, match="'basic' or 'inverted'"):
        ResolutionPredictor(3, block="bottleneck")


def official_network() -> DRNet:
    torch.manual_seed(0)
    return DRNet(tiny_resnet(), ResolutionPredictor(3, (4, 6, 8, 8)), (64, 48, 32), 32, shortcut_bn="first")


def test_official_names_round_trip() -> None:
    network = official_network()
    for parameter in [*network.parameters(), *network.buffers()]:
        if parameter.is_floating_point() and parameter.ndim:
            parameter.data.normal_()
    official = LAYOUT.to_official(network.state_dict())
    assert system_of(official) == system_of(network.state_dict(), "official") == "drnet"
    assert "classifier.layer2.0.down_sample_layer.1.bn_2.moving_variance" in official
    assert "predictor.layer2.0.bn1.gamma" in official
    assert "classifier.end_point.bias" in official
    other = official_network()
    assert load(other, LAYOUT.to_ours(official)) == []
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("part", ["classifier.", "predictor."])
def test_official_parts_convert_alone(part: str) -> None:
    network = official_network()
    official = {
        name.removeprefix(part): value
        for name, value in LAYOUT.to_official(network.state_dict()).items()
        if name.startswith(part)
    }
    assert system_of(official) == "drnet"
    load(network.get_submodule(part.removesuffix(".")), LAYOUT.to_ours(official))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("classifier.layer3.0.bn2.bn_1.gamma", "missing classifier.layer3.0.bn2.bn_1.gamma"),
        ("classifier.layer4.0.conv3.weight", "missing classifier.layer4.0.conv3.weight"),
        ("predictor.end_point.bias", "missing predictor.end_point.bias"),
        ("predictor.layer2.0.down_sample_layer.0.weight", "missing predictor.layer2.0.down_sample_layer.0.weight"),
    ],
)
def test_incomplete_official_weights_are_refused(lost: str, message: str) -> None:
    official = LAYOUT.to_official(official_network().state_dict())
    official.pop(lost)
    with pytest.raises(LayoutError, match=message):
        LAYOUT.to_ours(official)
    with pytest.raises(LayoutError, match=r"unknown classifier\.extra"):
        LAYOUT.to_ours(LAYOUT.to_official(official_network().state_dict()) | {"classifier.extra": torch.ones(1)})
