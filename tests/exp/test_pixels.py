"""What weights say of their images: written, read, handed to the data, and refused where it contradicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision import models as torchvision_models

from datamodules import Digits, Pixels
from exp import convert, fit
from exp.cli import Cli
from exp.pixels import Statement, hand_over
from exp.usage import UsageError
from exp.weights import start_from, to_evaluate
from models import official
from models.pixels import state_pretrained
from tests.library.official_networks import BUILD, weights
from tests.library.recipes import ROOT

CAFFE = Pixels((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "bgr", 255.0)
HALVES = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OWN = Pixels(Digits.mean, Digits.std)
QUICK = [
    "--config=configs/quickstart.yaml",
    "--model.network.options={patch_size: 1, depths: [1, 1, 1, 1], dims: [4, 4, 4, 4]}",
    "--model.schedule=null",
]
SHORT = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--test=false", "--wandb=disabled"]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def refused(capsys: pytest.CaptureFixture[str], action: Callable[[], object]) -> str:
    """The line of a command that ends in a mistake."""
    with pytest.raises(UsageError):
        action()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def saved(path: Path, network: nn.Module, pixels: Pixels | None) -> Path:
    """Weights as `convert` writes them."""
    convert.write(network.state_dict(), path, None if pixels is None else pixels.plain())
    return path


@pytest.mark.parametrize("name", ["dynamic_routing", "detectron2", "ranet", "mmdet"])
def test_convert_writes_and_says_what_the_weights_expect(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = official.layout_of(name)
    theirs = layout.to_official(weights(name))
    pixels = Pixels.stated(layout.pixels_of(theirs))
    torch.save(theirs, tmp_path / "theirs.pth")
    steps = [("theirs.pth", "ours.safetensors"), ("theirs.pth", "ours.pth"), ("ours.safetensors", "back.pth")]
    for source, target in [*steps, ("ours.pth", "back.safetensors")]:
        to = ["--to", "official"] if target.startswith("back") else []
        assert convert.main([str(tmp_path / source), str(tmp_path / target), *to]) == 0
        assert capsys.readouterr().out.endswith(f" numbers; pixels {pixels}\n")
        if target.endswith(".pth"):
            plain = torch.load(tmp_path / target, weights_only=True)["pixels"]
        else:
            with safe_open(tmp_path / target, framework="pt") as file:
                plain = json.loads(file.metadata()["pixels"])
        assert Pixels.stated(plain) == pixels
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert all(torch.equal(back[key], value) for key, value in theirs.items())


def test_what_a_file_says_outweighs_what_is_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Pixels((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    saved(tmp_path / "ours.safetensors", BUILD["convnext"](), own)
    assert convert.main([*map(str, (tmp_path / "ours.safetensors", tmp_path / "t.pth")), "--to", "official"]) == 0
    assert capsys.readouterr().out.endswith(f"; pixels {own}\n")
    network = BUILD["drconv"]()
    torch.save(official.layout_of("drconv").to_official(network.state_dict()), tmp_path / "unpublished.pth")
    assert convert.main([str(tmp_path / "unpublished.pth"), str(tmp_path / "ours.pth")]) == 0
    assert capsys.readouterr().out.endswith("; pixels not stated\n")
    assert torch.load(tmp_path / "ours.pth", weights_only=True).keys() == {"model"}
    # A run that is older than these statements had the data's own.
    run = {f"network.{name}": value for name, value in BUILD["convnext"]().state_dict().items()}
    torch.save({"state_dict": run}, tmp_path / "run.ckpt")
    assert convert.main([*map(str, (tmp_path / "run.ckpt", tmp_path / "raw.pth")), "--to", "official"]) == 0
    assert capsys.readouterr().out.endswith("; pixels not stated\n")


def test_a_run_has_the_pixels_of_its_weights_to_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = saved(tmp_path / "start.safetensors", Cli(QUICK, "fit").model.network, CAFFE)
    run = [*QUICK, *SHORT, f"--runs={tmp_path}", "--experiment=run", "--version=0"]
    capsys.readouterr()
    assert fit.main([*run, "--trainer.max_epochs=1", f"--weights={start}"]) == 0
    assert f"pixels {CAFFE}, as {start} expects them" in capsys.readouterr().out
    last = tmp_path / "run" / "0" / "checkpoints" / "last.ckpt"
    assert Pixels.stated(torch.load(last, weights_only=True)["pixels"]) == CAFFE
    # Evaluated, continued and started from, in a config that says nothing of pixels.
    for command in ("validate", "predict"):
        cli = Cli([f"--ckpt_path={last}"], command)
        assert to_evaluate(cli) == last
        assert cli.datamodule.pixels == CAFFE
    cli = Cli([*QUICK, f"--weights={last}"], "validate")
    assert to_evaluate(cli) == last
    assert cli.datamodule.pixels == CAFFE
    assert fit.main([*run, "--trainer.max_epochs=2", f"--resume={last}", "--version=1"]) == 0
    again = tmp_path / "run" / "1" / "checkpoints" / "last.ckpt"
    assert Pixels.stated(torch.load(again, weights_only=True)["pixels"]) == CAFFE

    halves = "--data.pixels={mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}"
    for argv, command in (([f"--ckpt_path={last}"], "validate"), ([*QUICK, f"--weights={last}"], "test")):
        cli = Cli([*argv, halves], command)
        capsys.readouterr()
        told = refused(capsys, lambda cli=cli: to_evaluate(cli))
        assert f"{last} expects pixels {CAFFE}, but the config says {HALVES}; remove data.init_args.pixels" in told
    capsys.readouterr()
    for argv in ([f"--weights={start}"], [f"--resume={last}"]):
        assert "but the config says RGB" in refused(
            capsys, lambda argv=argv: fit.main([*run, "--version=2", "--trainer.max_epochs=3", halves, *argv])
        )


def test_training_from_scratch_has_the_datas_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main([*QUICK, *SHORT, f"--runs={tmp_path}", "--experiment=run", "--trainer.max_epochs=1"]) == 0
    last = tmp_path / "run" / "0" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert Pixels.stated(content["pixels"]) == OWN
    # Checkpoints were once without them.
    del content["pixels"]
    torch.save(content, last)
    cli = Cli([f"--ckpt_path={last}"], "validate")
    to_evaluate(cli)
    assert cli.datamodule.pixels == OWN
    content["pixels"] = {"mean": [1, 2]}
    torch.save(content, last)
    cli = Cli([f"--ckpt_path={last}"], "validate")
    capsys.readouterr()
    told = refused(capsys, lambda: to_evaluate(cli))
    assert f"{last}: what it states of its pixels cannot be: a statement of pixels has mean and std" in told


def command(network: nn.Module, **parts: nn.Module) -> Any:
    """A command with these modules and digits."""
    model = nn.Module()
    for name, part in {"network": network, **parts}.items():
        model.add_module(name, part)
    return SimpleNamespace(model=model, datamodule=Digits())


def tiny() -> nn.Module:
    network: nn.Module = timm.create_model("separable_tiny", num_classes=10)
    return network


def pretrained(name: str) -> nn.Module:
    """A network of timm's, as if it were built with its weights."""
    network: nn.Module = timm.create_model(name)
    state_pretrained(network, True)
    return network


MINIMAL, LITE = "tf_mobilenetv3_small_minimal_100", "mobilenetv3_small_050"


def test_pretrained_networks_tell_the_data() -> None:
    cli = command(pretrained(MINIMAL))
    hand_over(cli, {})
    assert cli.datamodule.pixels == Pixels(*2 * [(0.5,) * 3], size=(224, 224), interpolation="bilinear", crop=0.875)
    # A part has no size of the whole.
    cli = command(nn.Sequential(pretrained(MINIMAL)))
    hand_over(cli, {})
    assert cli.datamodule.pixels == HALVES
    # What a file has replaced says nothing more.
    cli = command(pretrained(MINIMAL))
    hand_over(cli, {"network": (Path("w.pth"), Statement(CAFFE))})
    assert cli.datamodule.pixels == CAFFE
    cli = command(tiny())
    hand_over(cli, {})
    assert cli.datamodule.pixels == OWN


def test_networks_that_disagree_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    cli = command(pretrained(MINIMAL), teacher=pretrained(LITE))
    told = refused(capsys, lambda: hand_over(cli, {}))
    assert f"the pretrained network expects pixels {HALVES}, the pretrained teacher RGB 0..1 less (0.485" in told
    given = {"network": (Path("s.pth"), Statement(CAFFE)), "teacher": (Path("t.pth"), Statement(HALVES))}
    told = refused(capsys, lambda: hand_over(command(tiny(), teacher=tiny()), given))
    assert f"s.pth expects pixels {CAFFE}, t.pth {HALVES}: the same images cannot be both" in told
    hand_over(command(tiny(), teacher=tiny()), given | {"teacher": (Path("t.pth"), Statement(CAFFE))})


def test_networks_that_a_config_takes_from_timm_or_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = command(timm.create_model(MINIMAL))
    spec = {"class_path": "timm.create_model", "init_args": {"model_name": MINIMAL, "pretrained": True}}
    cli.plain = {"model": {"class_path": "Classification", "init_args": {"network": spec}}}
    hand_over(cli, {})
    assert cli.datamodule.pixels.agree(HALVES)
    cli = command(torchvision_models.resnet18())
    spec = {"class_path": "torchvision.models.resnet18", "init_args": {"weights": "IMAGENET1K_V1"}}
    cli.plain = {"model": {"class_path": "Classification", "init_args": {"network": spec}}}
    hand_over(cli, {})
    assert str(cli.datamodule.pixels).startswith("RGB 0..1 less (0.485, 0.456, 0.406) over (0.229, 0.224, 0.225), 224")
    spec["init_args"] = {"weights": None}
    cli.datamodule = Digits()
    hand_over(cli, {})
    assert cli.datamodule.pixels == OWN
    build = torchvision_models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    cli = command(build(weights=None, weights_backbone=None))
    hand_over(cli, {})
    assert cli.datamodule.pixels == Pixels((0.0,) * 3, (1.0,) * 3)


def test_a_file_that_says_nothing_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for network, expected, taken in (
        (timm.create_model(MINIMAL), HALVES, "as of timm's weights of this network"),
        (tiny(), OWN, "as the data's own"),
    ):
        path = tmp_path / "bare.safetensors"
        save_file(network.state_dict(), path)
        cli = command(network)
        hand_over(cli, {"network": (path, start_from(cli, path).pixels)})
        assert cli.datamodule.pixels.agree(expected)
        assert f"{path} does not say how its pixels look: taken {taken};" in capsys.readouterr().out
        # A config that says it is believed.
        cli.datamodule = Digits(pixels=CAFFE)
        hand_over(cli, {"network": (path, start_from(cli, path).pixels)})
        assert cli.datamodule.pixels == CAFFE
        assert not capsys.readouterr().out


@pytest.mark.parametrize("text", ["not JSON", "[1]", '{"mean": [0, 0], "std": [1, 1, 1]}'])
def test_a_statement_that_cannot_be_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.safetensors"
    save_file(tiny().state_dict(), path, metadata={"pixels": text})
    cli = command(tiny())
    told = refused(capsys, lambda: start_from(cli, path))
    assert f"--weights {path}: what it states of its pixels cannot be: " in told
    # Constants of a file that nobody can mean.
    theirs = official.layout_of("detectron2").to_official(weights("detectron2"))
    torch.save(theirs | {"pixel_mean": torch.zeros(1), "pixel_std": torch.ones(1)}, tmp_path / "odd.pth")
    assert convert.main([str(tmp_path / "odd.pth"), str(tmp_path / "out.pth")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.pth").exists()
