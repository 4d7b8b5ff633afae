"""Plans on networks of every family: what is removed, what it costs, and that nothing else changes."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch_pruning.pruner.importance import LAMPImportance
from torchvision.ops.misc import FrozenBatchNorm2d

from models.classifiers import pruned, timm_classifier
from models.compute import count, executed, parameter_count
from models.mistakes import Mistake
from models.pruning.costs import Costs
from models.pruning.groups import ChannelGroup, channel_groups
from models.pruning.initialisation import deviations
from models.pruning.plan import Plan, ranges
from models.pruning.planning import Choice, plan_by_share, plan_to_budget
from models.pruning.removal import masked, remove
from models.pruning.scores import copy_gradients, score_by, score_of_importance
from models.pruning.soundness import prunable_groups
from tests.library.prunable_networks import FAMILIES, family, images


def scores_of(network: nn.Module, groups: list[ChannelGroup], criterion: str = "l1") -> dict[str, Tensor]:
    score = score_by(criterion)
    return {group.name: score(network, group) for group in groups}


def half(network: nn.Module, groups: list[ChannelGroup], choice: Choice | None = None, share: float = 0.5) -> Plan:
    return plan_by_share(network, groups, scores_of(network, groups), share, choice or Choice(), {"criterion": "l1"})


def small(network: nn.Module, plan: Plan) -> nn.Module:
    other = copy.deepcopy(network)
    remove(other, plan)
    return other


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_network_equals_its_masked_twin(name: str) -> None:
    network, groups, whole = family(name)
    assert not whole
    plan = half(network, groups)
    with torch.no_grad():
        expected, outputs = masked(network, plan)(images()), small(network, plan)(images())
        torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        # And it is another function than the unpruned one.
        assert (network(images()) - outputs).abs().max() > 1e-2 * outputs.abs().max()


@pytest.mark.parametrize("name", ["vgg", "resnet", "bottleneck", "efficientnet", "dense", "convnext"])
def test_costs_by_widths_are_those_of_the_network_that_is_built(name: str) -> None:
    network, groups, _ = family(name)
    costs = Costs(network, (images(),), groups)
    plan = plan_to_budget(network, groups, scores_of(network, groups), 0.5, "macs", costs, Choice(scope="global"), {})
    built = small(network, plan)
    kept = {group.name: _kept(plan, group) for group in groups}
    found = costs.of(kept)
    assert found["macs"] == pytest.approx(count(built, inputs=(images(),)).macs)
    assert found["parameters"] == pytest.approx(parameter_count(built))
    assert found["macs"] == pytest.approx(executed(built, images()).macs)
    assert found["macs"] <= 0.5 * costs.dense["macs"]
    assert plan.why["reached"] == pytest.approx(found["macs"] / costs.dense["macs"], abs=1e-4)
    assert plan.why["reached"] > 0.4


def _kept(plan: Plan, group: ChannelGroup) -> int:
    sides = plan.layers.get(group.makers[0].layer, {})
    return len(sides["out"].channels) if "out" in sides else group.width


def test_a_plan_is_plain_and_needs_no_dense_weights() -> None:
    """The architecture is that of the pruned network, in which its weights fit, after a detour through JSON."""
    network, groups, _ = family("dense")
    plan = half(network, groups)
    again = pruned(FAMILIES["dense"](), json.loads(json.dumps(plan.as_dict())))
    again.load_state_dict(small(network, plan).state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(images()), small(network, plan)(images()))


def test_the_channels_of_largest_norm_are_kept() -> None:
    network, groups, _ = family("vgg")
    plan = half(network, groups)
    weight = network.get_parameter("4.weight")
    largest = weight.detach().abs().sum((1, 2, 3)).topk(6).indices.sort().values.tolist()
    assert plan.layers["4"]["out"].channels == tuple(largest)
    # Every channel of the map is four inputs of the linear layer.
    assert plan.layers["8"]["in"].channels == tuple(4 * c + i for c in largest for i in range(4))


def test_shares_of_layers_minimum_and_rounding() -> None:
    network, groups, _ = family("vgg")

    def widths(choice: Choice, share: float = 0.5) -> list[int]:
        plan = half(network, groups, choice, share)
        return [_kept(plan, group) for group in groups]

    assert widths(Choice()) == [4, 6, 5]
    assert widths(Choice(shares={"0": 0.25, "8": 0.9})) == [6, 6, 1]
    assert widths(Choice(minimum=3), 0.9) == [3, 3, 3]
    # Rounded up, and as far as there are channels.
    assert widths(Choice(round_to=4)) == [4, 8, 8]
    assert widths(Choice(round_to=16)) == [8, 12, 10]
    with pytest.raises(Mistake, match=r"no layer that can be pruned is called nowhere\.\*; there are 0, 4, 8"):
        half(network, groups, Choice(shares={"nowhere.*": 0.5}))


def test_rounding_says_what_it_costs() -> None:
    network, groups, _ = family("resnet")
    costs, scores = Costs(network, (images(),), groups), scores_of(network, groups)
    plan = plan_to_budget(network, groups, scores, 0.6, "macs", costs, Choice(round_to=4), {})
    assert all(len(kept.channels) % 4 == 0 for sides in plan.layers.values() for kept in sides.values())
    assert plan.why["rounding_costs"] > 0
    assert plan.why["reached"] <= 0.6


def test_a_budget_of_latency_is_measured() -> None:
    """By a clock that counts parameters."""
    network, groups, _ = family("vgg")

    def clock(pruned: nn.Module) -> float:
        return parameter_count(pruned) / parameter_count(network)

    costs, scores = Costs(network, (images(),), groups), scores_of(network, groups)
    plan = plan_to_budget(network, groups, scores, 0.5, "latency", costs, Choice(), {}, measure=clock)
    assert 0.4 < parameter_count(small(network, plan)) / parameter_count(network) <= 0.5


def test_faults_are_said_in_one_line() -> None:
    network, groups, _ = family("vgg")
    costs, scores = Costs(network, (images(),), groups), scores_of(network, groups)
    with pytest.raises(Mistake, match=r"a budget of 0\.01 of macs is below what this plan can reach: 0\.\d+ is left"):
        plan_to_budget(network, groups, scores, 0.01, "macs", costs, Choice(minimum=4), {})
    with pytest.raises(Mistake, match=r"a budget of 1\.5 is not a share"):
        plan_to_budget(network, groups, scores, 1.5, "macs", costs, Choice(), {})
    with pytest.raises(Mistake, match="layer 0 would lose all 8 filters"):
        plan_by_share(network, groups, scores, 0.999, Choice(minimum=0), {})
    with pytest.raises(Mistake, match="a criterion is one of l1, l2"):
        score_by("magnitude")
    plan = half(network, groups)
    with pytest.raises(
        Mistake, match=r"for another network, Sequential: its layer 0 has 8 channels \(out\), ResNet has no"
    ):
        remove(FAMILIES["resnet"](), plan)
    smaller = small(network, plan)
    with pytest.raises(Mistake, match=r"its layer 0 has 8 channels \(out\), Sequential has 4"):
        remove(smaller, plan)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is a mapping with `network`, `why` and `layers`"),
        ({"layers": {"a": {}}}, "layer a: what its sides `out` and `in` keep is missing"),
        ({"layers": {"a": {"out": {"of": 4, "kept": "x"}}}}, r"layer a \(out\): `of` is a number"),
        ({"layers": {"a": {"out": {"of": 4, "kept": "0-4"}}}}, r"layer a \(out\): kept channels are ascending"),
        ({"layers": {"a": {"out": {"of": 4, "kept": "2,1"}}}}, r"layer a \(out\): kept channels are ascending"),
    ],
)
def test_a_damaged_plan_is_refused(content: object, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        Plan.of(content)


def test_ranges() -> None:
    assert ranges([0, 1, 2, 3, 7, 9, 10]) == "0-3,7,9-10"


class Shuffled(nn.Module):
    """Chooses its channels by number, which no graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.third, self.head = nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)[:, torch.arange(7, -1, -1)]
        return self.head(self.third(self.second(x)).relu())


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no")


def test_what_the_graph_gets_wrong_stays_whole() -> None:
    groups, whole = prunable_groups(Shuffled(), images())
    assert whole == ["first"]
    assert {group.name for group in groups} == {"second", "third"}
    with pytest.raises(Mistake, match=r"Untraceable: its graph cannot be traced .* \(RuntimeError in forward\)"):
        prunable_groups(Untraceable(), images())
    with pytest.raises(Mistake, match="Conv2d: none of its channels can go"):
        channel_groups(nn.Conv2d(3, 4, 1), images())


class Maps(nn.Module):
    """A detector's backbone: it returns maps, and its norms are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = (
            nn.Conv2d(3, 8, 3),
            FrozenBatchNorm2d(8),
            nn.Conv2d(8, 6, 3),
            nn.Conv2d(6, 4, 1),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        middle = self.b(self.norm(self.a(x)).relu())
        return [middle, self.c(middle.relu())]


def test_a_part_of_a_detector_keeps_its_maps() -> None:
    detector = nn.ModuleDict({"backbone": Maps(), "head": Untraceable()})
    groups, whole = prunable_groups(detector, images(), "backbone")
    assert not whole
    assert [group.name for group in groups] == ["backbone.a"]
    costs = Costs(detector, (images(),), groups, "backbone")
    plan = plan_to_budget(
        detector, groups, scores_of(detector, groups), 0.6, "parameters", costs, Choice(), {"part": "backbone"}
    )
    remove(detector, plan)
    assert parameter_count(detector["backbone"]) <= 0.6 * costs.dense["parameters"]
    assert detector["backbone"].norm.weight.shape == (detector["backbone"].a.out_channels,)
    assert [each.shape[1] for each in detector["backbone"](images())] == [6, 4]
    with pytest.raises(Mistake, match="ModuleDict has no part 'neck'"):
        prunable_groups(detector, images(), "neck")


@pytest.mark.parametrize("criterion", ["l2", "batch_norm_scale", "random", "taylor"])
def test_criteria_of_groups(criterion: str) -> None:
    network, groups, _ = family("resnet")
    network(images()).square().sum().backward()
    for scores in scores_of(network, groups, criterion).values():
        assert scores.isfinite().all()
        assert len(set(scores.tolist())) > 1
    network.zero_grad()


def test_an_importance_of_torch_pruning() -> None:
    network, groups, _ = family("resnet")
    network(images()).square().sum().backward()
    copy_gradients(network, groups)
    score = score_of_importance(LAMPImportance())
    assert all(len(score(network, group)) == group.width for group in groups)
    network.zero_grad()


@pytest.mark.parametrize(("name", "fan"), [("resnet18", "out"), ("convnext_atto", "none"), ("vgg11", "out")])
def test_scratch_weights_are_drawn_for_the_widths(name: str, fan: str) -> None:
    """Twice the spread in a layer of a quarter of the places that its gradient comes from."""
    torch.manual_seed(0)
    if name == "vgg11":
        # Torch's own rule, by what is added up in a place.
        network: nn.Module = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.Conv2d(16, 64, 3), nn.Conv2d(64, 32, 1), nn.Conv2d(32, 5, 1)
        )
        fan = "in"
    else:
        options = (
            {"channels": [16, 32, 64, 64]} if name == "resnet18" else {"depths": [1] * 4, "dims": [16, 24, 32, 40]}
        )
        network = timm_classifier(name, num_classes=5, options=options)
    rules = {rule for layer, (rule, _) in deviations(network).items() if "fc" not in layer}
    assert fan in rules
    groups, _ = channel_groups(network, images())
    plan = plan_by_share(network, groups, scores_of(network, groups, "random"), 0.75, Choice(), {})
    before = {
        name: float(module.weight.detach().std())
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    pruned(network, plan.as_dict())
    for layer, sides in plan.layers.items():
        if layer in before and fan in ("in", "out") and fan in sides and not (fan == "in" and layer == "0"):
            module = network.get_submodule(layer)
            if module.weight.numel() >= 256:
                assert float(module.weight.detach().std()) == pytest.approx(2 * before[layer], rel=0.15), layer
    if fan == "none":
        stem = network.get_parameter("stages.3.blocks.0.mlp.fc1.weight")
        assert math.isclose(float(stem.detach().std()), 0.02, rel_tol=0.1)


def test_training_from_scratch_does_not_begin_as_the_large_network_did() -> None:
    """The channels that are kept of its first weights are the winning ticket, which is another arm."""

    def large() -> nn.Module:
        torch.manual_seed(0)
        return timm_classifier("resnet18", num_classes=5, options={"channels": [16, 16, 16, 16]})

    network = large()
    groups, _ = channel_groups(network, images())
    plan = half(network, groups)
    ticket, scratch = small(large(), plan), pruned(large(), plan.as_dict())
    layer = "layer2.0.conv2.weight"
    pair = torch.stack([each.get_parameter(layer).detach().flatten() for each in (ticket, scratch)])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.1
    torch.testing.assert_close(scratch.get_parameter(layer), pruned(large(), plan.as_dict()).get_parameter(layer))
