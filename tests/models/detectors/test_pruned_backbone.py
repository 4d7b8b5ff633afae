"""A pruned classifier's backbone in a detector: narrower maps, the classifier's weights, the plan's own faults."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.classifiers import pruned, timm_classifier
from models.detectors import RetinaNet
from models.mistakes import Mistake
from models.pruning.planning import Choice, plan_by_share
from models.pruning.scores import score_by
from models.pruning.soundness import prunable_groups

NETWORKS: dict[str, dict[str, Any]] = {
    "narrow_resnet": {"layers": [1, 1, 1, 1], "width": 8},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 12, 16]},
}


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=NETWORKS, scope="module")
def classifier(request: pytest.FixtureRequest) -> tuple[str, nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    network = timm_classifier(request.param, 5, options=NETWORKS[request.param]).eval()
    groups, _ = prunable_groups(network, images())
    scores = {group.name: score_by("l1")(network, group) for group in groups}
    plan = plan_by_share(network, groups, scores, 0.5, Choice(), {}).as_dict()
    return request.param, pruned(network, plan).eval(), plan


def detector(name: str, plan: Any) -> RetinaNet:
    options = NETWORKS[name] | {"plan": plan}
    return RetinaNet(name, 5, options=options, fpn_chans=8, num_convs=1, frozen_norm=False, frozen_stages=0).eval()


def test_a_detector_takes_its_maps_and_weights(classifier: tuple[str, nn.Module, dict[str, Any]]) -> None:
    name, small, plan = classifier
    built = detector(name, plan)
    theirs = small.state_dict()
    body = built.backbone.body
    body.load_state_dict({key: theirs[re.sub(r"^(stem|stages)_", r"\1.", key)] for key in body.state_dict()})
    features: Any = timm_features(small)
    padding = torch.zeros(2, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        found = [each for each, _ in built.backbone(images(), padding)]
    assert [each.shape[1] for each in found] == built.backbone.channels
    torch.testing.assert_close(found[-1], features, rtol=1e-4, atol=1e-5)
    assert len(built([images()[0]])) == 1


def timm_features(network: Any) -> Tensor:
    """The classifier's last map, before what it does with it alone."""
    with torch.no_grad():
        last: Tensor = network.forward_intermediates(images(), intermediates_only=True, norm=False)[-1]
    return last


def test_faults_are_said_in_one_line(classifier: tuple[str, nn.Module, dict[str, Any]]) -> None:
    _, _, plan = classifier
    with pytest.raises(Mistake, match=r"for another network, \w+: this backbone has none of its layers"):
        RetinaNet("vgg11", 5, options={"plan": plan})
