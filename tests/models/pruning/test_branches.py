"""Residual branches with scales: what goes with one, what stays of the others, and what cannot go."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from models.classifiers import CIFARResNet, PreActResNet, pruned, scaled_branches
from models.compute import executed
from models.mistakes import Mistake
from models.pruning.branches import branches_to_budget, check_branches, remove_branches, scales_of
from models.pruning.plan import Plan
from models.pruning.removal import remove
from models.pruning.soundness import drawn_anew

NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "ours": (lambda: CIFARResNet(14, stage_widths=(4, 4, 8)), "stages.*.norm2"),
    "before norms": (lambda: PreActResNet(20), "stages.*.conv3"),
    "timm": (lambda: timm.create_model("narrow_resnet", layers=(2, 1, 1, 1), width=4, num_classes=3), "layer*.bn3"),
    "layer scale": (
        lambda: timm.create_model("convnext_atto", depths=(1, 1, 2, 1), dims=(4, 4, 8, 8), num_classes=3),
        "stages.*.mlp",
    ),
}


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(name: str) -> nn.Module:
    """With weights of which none is zero, and scales from 0.5 on."""
    make, pattern = NETWORKS[name]
    made = drawn_anew(scaled_branches(make(), [pattern])).eval()
    for place, scale in enumerate(scales_of(made).values()):
        nn.init.constant_(scale, 0.5 + 0.25 * place)
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_branch_it_is_what_it_is_with_a_scale_of_zero(name: str) -> None:
    scaled = network(name)
    gone = list(scales_of(scaled))[::2]
    small, twin = copy.deepcopy(scaled), copy.deepcopy(scaled)
    remove_branches(small, gone)
    for branch in gone:
        nn.init.zeros_(scales_of(twin)[branch])
    with torch.no_grad():
        found, expected = small(images()), twin(images())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert (found - scaled(images())).abs().max() > 1e-3 * found.abs().max()
    # Layers are gone, all others have their names, and scales are in their weights where there are any.
    assert executed(small, images()).macs < executed(scaled, images()).macs
    assert small.state_dict().keys() < scaled.state_dict().keys()
    assert bool(scales_of(small)) == (name == "layer scale")
    check_branches(scaled, gone, (images(),))
    # And it can be trained further.
    small.train()(images()).sum().backward()


def test_a_plan_builds_it_from_random_weights() -> None:
    scaled = network("timm")
    gone = list(scales_of(scaled))[1:3]
    plan = Plan(type(scaled).__name__, {}, {"criterion": "branch_scale"}, tuple(gone))
    small = copy.deepcopy(scaled)
    remove(small, plan)
    written = json.loads(json.dumps(plan.as_dict()))
    assert Plan.of(written) == plan
    alone = pruned(network("timm"), written).eval()
    alone.load_state_dict(small.state_dict())
    assert torch.equal(alone(images()), small(images()))
    with pytest.raises(Mistake, match=r"its branch layer\d\.\d\.bn3 goes, CIFARResNet has no such layer"):
        pruned(CIFARResNet(8), written)


def test_the_smallest_scales_go_until_the_budget_is_met() -> None:
    scaled = network("ours")
    order = list(scales_of(scaled))

    def cost(each: nn.Module) -> float:
        return executed(each, images()).macs

    gone = branches_to_budget(scaled, (images(),), 0.7, cost)
    assert gone == order[: len(gone)]
    left = []
    for count in (len(gone) - 1, len(gone)):
        small = copy.deepcopy(scaled)
        remove_branches(small, order[:count])
        left.append(cost(small) / cost(scaled))
    assert left[1] <= 0.7 < left[0]


def test_faults_are_said_in_one_line() -> None:
    with pytest.raises(Mistake, match=r"has no layer 'layer\*\.bn3'; name the last layers of its residual branches"):
        scaled_branches(CIFARResNet(8), ["layer*.bn3"])
    with pytest.raises(Mistake, match=r"branch stem\.norm cannot go: stem adds it to nothing"):
        scaled_branches(CIFARResNet(8), ["stem.norm"])
    with pytest.raises(Mistake, match=r"below what this plan can reach: 0\.\d+ is left without any of the 6 branches"):
        branches_to_budget(network("ours"), (images(),), 0.01, lambda each: executed(each, images()).macs)
    with pytest.raises(Mistake, match="has no scales on its branches"):
        branches_to_budget(CIFARResNet(8), (images(),), 0.5, lambda each: 1.0)
    # A scale in the middle of a branch with a bias behind it is not that of the branch.
    inner = scaled_branches(CIFARResNet(8), ["stages.*.conv2"])
    for module in inner.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.bias)
    with pytest.raises(Mistake, match="computes something else without"):
        check_branches(inner, list(scales_of(inner)), (images(),))
