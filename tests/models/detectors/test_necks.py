"""A neck is an argument of the detectors on a pyramid, by class and from a config."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from exp.cli import Cli, resolve
from models.detectors import FCOS, FasterRCNN, RetinaNet
from models.necks import FPN
from tests.library.toy_neck import ToyNeck

SMALL: dict[str, Any] = {
    "backbone": "resnet26",
    "options": {"channels": (8, 8, 16, 16)},
    "num_classes": 3,
    "fpn_chans": 32,
    "frozen_stages": 0,
}
# Mask and Cascade R-CNN are Faster R-CNN with other heads.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "faster": partial(FasterRCNN, fc_dim=16),
    "retinanet": RetinaNet,
    "fcos": FCOS,
}
TOY = "tests.library.toy_neck.ToyNeck"
FROM_CONFIG = [
    "--model=Detection",
    "--model.network=models.detectors.RetinaNet",
    "--model.network.backbone=plain_conv",
    "--model.network.options={widths: [8, 8, 16, 16]}",
    "--model.network.num_classes=3",
    "--model.network.fpn_chans=16",
    "--model.network.frozen_stages=0",
    "--data=DigitScenes",
]


def scene() -> tuple[list[Tensor], list[dict[str, Any]]]:
    image = torch.zeros(3, 64, 96)
    image[0, 8:40, 8:40] = 1
    return [image], [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}]


def step(network: nn.Module) -> None:
    """One step of training, in which every parameter of the neck takes part."""
    before = [parameter.detach().clone() for parameter in network.neck.parameters()]
    losses = network.train()(*scene())
    torch.stack(list(losses.values())).sum().backward()
    # A level too coarse for the scene has a gradient of zero.
    assert all(parameter.grad.isfinite().all() for parameter in network.neck.parameters())
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    assert any(not torch.equal(x, y) for x, y in zip(before, network.neck.parameters(), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_foreign_neck_trains_and_finds(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](**SMALL, neck=ToyNeck, score_threshold=0.0)
    # No coarser level than the coarsest map.
    assert network.strides == ([4, 8, 16, 32] if name == "faster" else [8, 16, 32])
    step(network)
    with torch.no_grad():
        (found,) = network.eval()(scene()[0])
    assert found["boxes"].shape[1:] == (4,)


def test_a_config_names_the_neck_and_gives_its_options(tmp_path: Path) -> None:
    resolved = resolve([*FROM_CONFIG, f"--model.network.neck={TOY}", "--model.network.neck.gain=0.5"])
    assert resolved["model"]["init_args"]["network"]["init_args"]["neck"] == {
        "class_path": TOY,
        "init_args": {"gain": 0.5},
    }
    # As a run directory and a checkpoint keep it.
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(resolved))
    torch.manual_seed(0)
    network = Cli(["--config", str(config)], "fit").model.network
    assert isinstance(network.neck, ToyNeck)
    assert network.neck.gain == 0.5
    assert [conv.out_channels for conv in network.neck.convs] == [16, 16, 16]
    step(network)


def test_without_a_neck_in_the_config_it_is_the_pyramid() -> None:
    plain = Cli(FROM_CONFIG, "fit").model.network
    named = Cli([*FROM_CONFIG, "--model.network.neck=FPN"], "fit").model.network
    assert isinstance(plain.neck, FPN)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in named.named_parameters()]
    init_args = resolve(FROM_CONFIG)["model"]["init_args"]["network"]["init_args"]
    assert init_args["neck"] == {"class_path": "models.necks.FPN"}


def test_a_neck_says_how_many_levels_it_has() -> None:
    class Silent(ToyNeck):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            del self.num_levels

    class Short(ToyNeck):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.num_levels = 2

    for neck, states in ((Silent, "Silent states None"), (Short, "Short states 2")):
        with pytest.raises(ValueError, match=f"at least 3, one for each map: {states}"):
            RetinaNet(**SMALL, neck=neck)
    assert RetinaNet(**SMALL, neck=partial(ToyNeck, gain=2.0)).neck.gain == 2.0
