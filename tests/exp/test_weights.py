from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from exp import convert
from exp.cli import Cli, UsageError
from exp.weights import Start, start_from, to_evaluate
from models import official, pose, segmenters
from models.segmenters.dynamic_routing import DynamicRouting
from tests.recipes import ROOT

ADPC = "--config=configs/segmentation/adpc_w18_cityscapes.yaml"
ROUTING = "--config=configs/segmentation/dynamic_routing_digits.yaml"
POSE = "--config=configs/pose/hrnet_w32_mpii.yaml"

TINY: dict[str, Any] = {
    "stages": [(1, [1], [4]), (1, [1] * 2, [4, 6]), (1, [1] * 3, [4, 6, 8]), (1, [1] * 4, [4, 6, 8, 10])],
    "pooled_dim": 6,
}


def refused(capsys: pytest.CaptureFixture[str], action: Callable[[], object]) -> str:
    """The message of a command that ends in a mistake."""
    with pytest.raises(UsageError):
        action()
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_imagenet_weights_start_a_training_and_are_no_segmenter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = timm.create_model("hrnet_w18_small_v2").state_dict()
    official, trunk = tmp_path / "hrnet.pth", tmp_path / "trunk.safetensors"
    torch.save(state, official)
    assert convert.main([str(official), str(trunk)]) == 0
    printed = capsys.readouterr()
    assert "hrnet_imagenet weights in our layout" in printed.out
    assert "left out (the layers of classification): incre_modules (96 tensors), downsamp_modules" in printed.err
    cli = Cli([ADPC, f"--weights={trunk}"], "fit")
    told = start_from(cli, trunk).told()
    assert told == "starting afresh: falloffs of masked convolutions (143 tensors), exits (78 tensors)"
    assert torch.equal(cli.model.network.backbone.conv2.weight, state["conv2.weight"])
    assert "an official layout; translate it" in refused(capsys, lambda: start_from(cli, official))
    message = refused(capsys, lambda: to_evaluate(Cli([ADPC, f"--weights={trunk}"], "validate")))
    assert "(missing: falloffs of masked convolutions (143 tensors), exits (78 tensors)); train it by" in message
    back = tmp_path / "back.pth"
    assert convert.main([str(trunk), str(back), "--to", "official"]) == 0
    model = torch.load(back, weights_only=True)["model"]
    assert all(torch.equal(value, state[name]) for name, value in model.items())
    assert "stage4.1.fuse_layers.3.2.0.0.weight" in model
    assert not any(name.startswith("incre_modules.") for name in model)


def test_a_run_with_every_path_open_starts_one_with_gates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = Cli([ROUTING, "--model.init_args.network.init_args.route=all", "--trainer.callbacks=[]"], "fit").model
    assert isinstance(fixed.network, DynamicRouting)
    best = tmp_path / "best.ckpt"
    torch.save({"state_dict": fixed.state_dict(), "global_step": 3}, best)
    dynamic = Cli([ROUTING, f"--weights={best}"], "fit")
    gates = sum(name.split(".")[3:4] == ["gate"] for name in dynamic.model.network.state_dict())
    assert start_from(dynamic, best).told() == f"starting afresh: gates ({gates} tensors)"
    message = refused(capsys, lambda: to_evaluate(Cli([ROUTING, f"--weights={best}"], "validate")))
    assert f"(missing: gates ({gates} tensors)); train it by `python -m exp fit --weights`" in message
    # With gates it is whole.
    torch.save({"state_dict": dynamic.model.state_dict()}, best)
    assert to_evaluate(Cli([ROUTING, f"--weights={best}"], "validate")) == best


def test_left_over_weights_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "more.safetensors"
    command = [POSE, "--model.init_args.network.init_args.stages=w18_small_v2", f"--weights={weights}"]
    cli = Cli(command, "fit")
    spare = {f"backbone.stage4.1.fuse_layers.{i}.0.0.0.weight": torch.ones(1) for i in (1, 2)}
    save_file(cli.model.network.state_dict() | spare, weights)
    assert start_from(cli, weights).told() == "left out: fusion into coarser branches (2 tensors)"
    message = refused(capsys, lambda: to_evaluate(Cli(command, "validate")))
    assert "(without a place: fusion into coarser branches (2 tensors))" in message


@pytest.mark.parametrize("name", ["hrnet_w18_small_v2", "condconv_efficientnet_b0_4e"])
def test_networks_whose_layout_is_the_official_one(tmp_path: Path, name: str) -> None:
    source, network = (timm.create_model(name, num_classes=classes) for classes in (3, 4))
    torch.save(
        {"state_dict": {f"network.{key}": value for key, value in source.state_dict().items()}}, tmp_path / "w.pth"
    )
    cli: Any = SimpleNamespace(model=SimpleNamespace(network=network))
    start = start_from(cli, tmp_path / "w.pth")
    assert start == Start({}, {}, ["classifier.weight", "classifier.bias"])
    assert torch.equal(network.bn1.weight, source.bn1.weight)


def test_what_is_told_is_one_line() -> None:
    assert Start({}, {}, []).told() == ""
    start = Start({"gates": ["a", "b"]}, {"memory": ["c"]}, ["head.weight", "head.bias"])
    assert start.told() == (
        "starting afresh: gates (2 tensors); left out: memory (1 tensors); "
        "another number of classes, so head.weight, head.bias start afresh"
    )


@pytest.mark.parametrize("kind", [segmenters.ADPC, pose.ADPCPose])
def test_exits_of_another_number_of_classes_start_afresh(kind: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    theirs, ours = kind(5, **TINY), kind(3, **TINY)
    fresh = {name: value.clone() for name, value in ours.state_dict().items()}
    stayed = official.load(ours, theirs.state_dict())
    assert len([name for name in stayed if name.endswith(".weight")]) == 4
    state = ours.state_dict()
    assert all(torch.equal(state[name], fresh[name]) for name in stayed)
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items() if name not in stayed)
