"""Who has all weights in a file asks no hub for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm.models._builder as builder
import torch
import torchvision
from huggingface_hub import constants
from torch import nn
from torchvision.models import WeightsEnum

from exp import fit
from exp.cli import Cli
from exp.hubs import HubError, covered, held_back
from exp.usage import UsageError
from exp.weights import to_evaluate
from tests.library.recipes import ROOT

PRETRAINED = "--model.init_args.network.init_args.pretrained=true"
COMMAND = ["--config=configs/quickstart.yaml", PRETRAINED, "--trainer.callbacks=[]"]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks that a hub was asked for; it is not there."""
    names: list[str] = []

    def hub(network: Any, *_: Any, **__: Any) -> None:
        names.append(type(network).__name__)
        raise OSError("no route to host\nmore of it")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(builder, "load_pretrained", hub)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", hub)
    return names


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of a network that was started from a hub's weights, and the weights alone."""
    cli = Cli(COMMAND, "fit")
    checkpoint, weights = tmp_path / "best.ckpt", tmp_path / "weights.pth"
    state = cli.model.state_dict()
    torch.save({"state_dict": state, "exp_config": cli.config_text(), "global_step": 1}, checkpoint)
    torch.save({"model": cli.model.network.state_dict()}, weights)
    return checkpoint, weights


@pytest.mark.parametrize("command", ["profile", "export", "data", "prune"])
def test_a_command_that_trains_nothing_asks_no_hub(asked: list[str], command: str) -> None:
    Cli(COMMAND, command)
    assert asked == []


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_asks_no_hub(files: tuple[Path, Path], asked: list[str], command: str) -> None:
    checkpoint, weights = files
    cli = Cli([f"--ckpt_path={checkpoint}"], command)
    assert to_evaluate(cli) == checkpoint
    assert to_evaluate(Cli([*COMMAND, f"--weights={weights}"], command)) == weights
    assert asked == []
    # What the config says stays said, and what the network knows of those weights is still there.
    assert "pretrained: true" in cli.config_text()
    assert cli.model.network.pretrained_cfg["mean"]


def test_a_training_asks_for_what_no_file_gives(
    files: tuple[Path, Path], asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, weights = files
    quick = [*COMMAND, f"--runs={tmp_path}/runs", "--trainer.fast_dev_run=1", "--wandb=disabled", "--test=false"]
    assert fit.main([*quick, f"--weights={weights}"]) == 0
    assert asked == []
    weights.write_bytes(b"<html>")
    capsys.readouterr()
    # What is no file of weights is told before there is a run.
    with pytest.raises(UsageError):
        fit.main([*quick, "--experiment=other", f"--weights={weights}"])
    assert "a web page" in capsys.readouterr().err
    assert not (tmp_path / "runs/other").exists()
    with pytest.raises(UsageError):
        fit.main([*quick, "--resume=never"])
    assert asked == ["ConvNeXt"]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "exp: no pretrained weights for ConvNeXt from the hub (no route to host): give the network weights by "
        "--weights FILE, take one that a package has weights of (tf_efficientnet_lite0, tf_efficientnet_lite1, "
        "tf_efficientnet_lite2; --weights package), or set its pretrained to false"
    )


def test_a_hubs_weights_come_into_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(network: Any, **_: Any) -> None:
        nn.init.constant_(network.stem[0].bias, 7)

    torch.manual_seed(0)
    fresh = Cli(COMMAND, "fit")
    expected = fresh.model.state_dict()
    monkeypatch.setattr(builder, "load_pretrained", hub)
    given = Cli(COMMAND, "fit")
    given.ask_hubs([given.model.network])
    assert not (given.model.network.stem[0].bias == 7).any()
    given.ask_hubs([given.model.network.head])
    bias = given.model.network.stem[0].bias
    assert torch.equal(bias, torch.full_like(bias, 7))
    # What comes from no hub is drawn as if the network had been built once.
    for name, value in given.model.state_dict().items():
        assert name == "network.stem.0.bias" or torch.equal(value, expected[name]), name


def test_requests_are_answered_one_by_one(asked: list[str]) -> None:
    before = builder.load_pretrained, WeightsEnum.get_state_dict, nn.Module.load_state_dict
    with held_back() as held:
        first, second = (torchvision.models.resnet18(weights="DEFAULT") for _ in range(2))
        # Weights that come from no hub are put in as ever.
        copy = nn.Linear(2, 2)
        copy.load_state_dict(nn.Linear(2, 2).state_dict())
    assert held == {0: first, 1: second}
    with held_back(lambda number: number == 0) as held, pytest.raises(HubError, match="no route to host"):
        first, second = (torchvision.models.resnet18(weights="DEFAULT") for _ in range(2))
    assert list(held) == [0]
    assert asked == ["ResNet18_Weights"]
    assert before == (builder.load_pretrained, WeightsEnum.get_state_dict, nn.Module.load_state_dict)


def test_a_hub_that_no_network_leads_to_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any) -> None:
        raise OSError("no such host")

    offline: list[bool] = []
    monkeypatch.setattr(builder, "load_pretrained", lambda *_, **__: offline.append(constants.is_offline_mode()))
    monkeypatch.setattr("exp.hubs.getproxies", dict)
    for look_up in (nowhere, lambda *_: []):
        monkeypatch.setattr("socket.getaddrinfo", look_up)
        Cli(COMMAND, "fit").ask_hubs([])
    assert offline == [True, False]
    assert not constants.is_offline_mode()


def test_what_is_covered() -> None:
    model = nn.ModuleDict({"network": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "teacher": nn.Linear(2, 2)})
    network = model["network"]
    assert covered(network, [network], model)
    assert covered(network[0], [network], model)
    assert not covered(network, [network[0]], model)
    assert not covered(model["teacher"], [network], model)
    # Nothing of it is left where anybody could look.
    assert not covered(nn.Linear(2, 2), [network], model)
    # Its last layer was replaced.
    built = nn.Sequential(network[0], nn.Linear(2, 7))
    assert covered(built, [network], model)
