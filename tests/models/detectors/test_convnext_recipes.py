"""The recipes of the ConvNeXt detectors give every layer its published learning rate."""

import pytest
import torch
import yaml

from lightning_modules.convnext_layers import layer_wise_id
from lightning_modules.parameter_groups import LayerDecay, parameter_groups
from models import detectors
from tests.library.recipes import ROOT

NUM_LAYERS = 6


@pytest.mark.parametrize(
    ("name", "decay", "lr"), [("mask_rcnn_convnext_coco", 0.95, 1e-4), ("cascade_mask_rcnn_convnext_coco", 0.7, 2e-4)]
)
def test_learning_rates_are_the_published_ones(name: str, decay: float, lr: float) -> None:
    task = yaml.safe_load((ROOT / f"configs/detection/{name}.yaml").read_text())["model"]["init_args"]
    given = task["optimizer"]["init_args"]
    assert given == {"lr": lr, "betas": [0.9, 0.999], "weight_decay": 0.05}
    arguments = task["network"]["init_args"] | {"pretrained": False}
    with torch.device("meta"):
        network = getattr(detectors, task["network"]["class_path"].rsplit(".", 1)[1])(**arguments)
    assert task["layer_decay"]["decay"] == decay
    groups = parameter_groups(network, lr, 0.05, LayerDecay(**task["layer_decay"]))
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert len(rates) == len(list(network.parameters()))
    for parameter, rate in rates.items():
        # timm joins the first two names where it hands out features.
        plain = parameter.replace("backbone.body.stem_", "stem.").replace("backbone.body.stages_", "stages.")
        assert rate == pytest.approx(lr * decay ** (NUM_LAYERS + 1 - layer_wise_id(plain, NUM_LAYERS)), rel=1e-6)
    # The stem, six layers, and everything else.
    assert len({round(rate / lr, 6) for rate in rates.values()}) == 8
