from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from models.classifiers import timm_classifier
from models.timm_options import create


@pytest.fixture(autouse=True)
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are as new ones are, whatever weights they ask for."""

    def made(name: str, options: dict[str, Any], pretrained: bool, **arguments: Any) -> nn.Module:
        return create(name, options, pretrained=False, **arguments)

    monkeypatch.setitem(vars(sys.modules[timm_classifier.__module__]), "create", made)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050"])
def test_a_new_head_on_trained_features_says_little_at_first(name: str) -> None:
    head = timm_classifier(name, num_classes=3, pretrained=True).get_classifier()
    assert head.weight.std() < 0.02
    assert not head.bias.any()


def test_a_head_that_comes_with_the_weights_is_left_alone() -> None:
    torch.manual_seed(0)
    given = timm_classifier("tf_efficientnet_lite0", num_classes=1000, pretrained=True).get_classifier()
    torch.manual_seed(0)
    new = timm_classifier("tf_efficientnet_lite0", num_classes=1000).get_classifier()
    assert torch.equal(given.weight, new.weight)


def test_a_training_from_nothing_begins_as_its_family_does() -> None:
    assert timm_classifier("tf_efficientnet_lite0", num_classes=3).get_classifier().weight.std() > 0.1
