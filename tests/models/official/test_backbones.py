"""A backbone goes from learning without labels to a classifier, and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.classifiers import WideResNet, timm_classifier
from models.official import LayoutError, load
from models.official.backbones import holds_sides, into_classifier, into_learner, of_another_kind, published_backbone
from models.self_supervised import BYOL, DINO, Learner

SMALL = {"depths": [1, 1, 1, 1], "dims": [4, 6, 8, 10], "kernel_sizes": 3}


def backbone(kind: str, num_classes: int) -> nn.Module:
    if kind == "timm":
        return timm_classifier("convnext_atto", num_classes, options=SMALL)
    return WideResNet(10, 1, num_classes=num_classes, base_width=4)


def learner(kind: str, host: type[Learner]) -> Learner:
    options = {"hidden_dim": 8, "out_dim": 4} if host is BYOL else {"head": {"out_dim": 6, "hidden_dim": 8}}
    network = host(backbone(kind, 0), **options)  # type: ignore[call-arg]
    # The teacher begins as a copy.
    nn.init.constant_(next(iter(network.teacher.backbone.parameters())), 0.5)
    return network


@pytest.mark.parametrize("kind", ["timm", "ours"])
@pytest.mark.parametrize(("host", "side"), [(BYOL, "student"), (DINO, "teacher")])
def test_a_classifier_takes_the_published_side(kind: str, host: type[Learner], side: str) -> None:
    source, network = learner(kind, host), backbone(kind, 5)
    assert holds_sides(source.state_dict())
    assert not holds_sides(network.state_dict())
    fresh = {name: value.clone() for name, value in network.state_dict().items() if name.startswith("head")}
    fitted = into_classifier(network, source.state_dict())
    assert load(network, fitted.state) == []
    taken = source.get_submodule(f"{side}.backbone").state_dict()
    assert fitted.taken == f"the {side}'s backbone is taken ({len(taken)} tensors)"
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in taken.items())
    head = "head.fc." if kind == "timm" else "head."
    assert all(torch.equal(state[name], value) for name, value in fresh.items() if name.startswith(head))
    assert fitted.absent == {"head": [f"{head}weight", f"{head}bias"]}
    other = "teacher" if side == "student" else "student"
    assert {f"{other}.backbone", f"{side}.projector"} <= fitted.spare.keys()
    asked, whose = published_backbone(source.state_dict(), other)
    assert whose == other
    assert asked.keys() == taken.keys()
    assert not all(torch.equal(asked[name], value) for name, value in taken.items())


@pytest.mark.parametrize("kind", ["timm", "ours"])
def test_both_sides_take_a_classifiers_backbone(kind: str) -> None:
    source, network = backbone(kind, 5), learner(kind, BYOL)
    before = {name: value.clone() for name, value in network.predictor.state_dict().items()}
    fitted = into_learner(network, source.state_dict())
    load(network, fitted.state)
    for side in (network.student, network.teacher):
        state = side.backbone.state_dict()
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in state.items())
    assert all(torch.equal(value, before[name]) for name, value in network.predictor.state_dict().items())
    assert list(fitted.absent) == ["student.projector", "teacher.projector", "predictor"]
    assert list(fitted.spare) == ["head"]


def test_a_learner_goes_on_from_one_of_another_kind() -> None:
    source, network = learner("timm", DINO), learner("timm", BYOL)
    state = source.state_dict()
    assert of_another_kind(network, state)
    assert not of_another_kind(learner("timm", DINO), state)
    fitted = into_learner(network, state)
    load(network, fitted.state)
    taken = source.teacher.backbone.state_dict()
    for side in (network.student, network.teacher):
        assert all(torch.equal(value, taken[name]) for name, value in side.backbone.state_dict().items())
    assert set(fitted.spare) == {"centre", "student.backbone", "student.projector", "teacher.projector"}


@pytest.mark.parametrize("kind", ["timm", "ours"])
def test_a_backbone_of_another_depth_is_refused(kind: str) -> None:
    source = learner(kind, BYOL).state_dict()
    deeper = (
        timm_classifier("convnext_atto", 5, options=SMALL | {"depths": [1, 1, 2, 1]})
        if kind == "timm"
        else WideResNet(16, 1, num_classes=5, base_width=4)
    )
    with pytest.raises(LayoutError, match=r"missing stages\."):
        load(deeper, into_classifier(deeper, source).state)
    with pytest.raises(LayoutError, match=r"unknown student\.backbone\.stages\."):
        load(learner(kind, BYOL), into_learner(learner(kind, BYOL), deeper.state_dict()).state)
