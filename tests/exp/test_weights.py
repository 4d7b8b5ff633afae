from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from exp import convert, fit
from exp.cli import Cli
from exp.weights import Start, start_from, to_evaluate, weight_files
from models import official, pose, segmenters
from models.detectors.features import Features
from models.segmenters.dynamic_routing import DynamicRouting
from models.self_supervised import BYOL
from tests.library.recipes import ROOT
from tests.library.refusals import refused

ADPC = "--config=configs/segmentation/adpc_w18_cityscapes.yaml"
ROUTING = "--config=configs/segmentation/dynamic_routing_digits.yaml"
POSE = "--config=configs/pose/hrnet_w32_mpii.yaml"

TINY: dict[str, Any] = {
    "stages": [(1, [1], [4]), (1, [1] * 2, [4, 6]), (1, [1] * 3, [4, 6, 8]), (1, [1] * 4, [4, 6, 8, 10])],
    "pooled_dim": 6,
}


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
    message = start_from(cli, trunk).message()
    assert message == "starting afresh: falloffs of masked convolutions (143 tensors), exits (78 tensors)"
    assert torch.equal(cli.model.network.backbone.conv2.weight, state["conv2.weight"])
    translated = "weights in the official ImageNet HRNet layout, translated"
    assert start_from(cli, official).message().startswith(f"{translated}; {message}")
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
    assert start_from(dynamic, best).message() == f"starting afresh: gates ({gates} tensors)"
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
    assert start_from(cli, weights).message() == "left out: fusion into coarser branches (2 tensors)"
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


def test_what_a_training_left_is_told(tmp_path: Path) -> None:
    source, network = (timm.create_model("hrnet_w18_small_v2", num_classes=3) for _ in range(2))
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"model": state | {"module.criterion.weight": torch.ones(5), "epoch": 3}}, tmp_path / "w.pth")
    cli: Any = SimpleNamespace(model=SimpleNamespace(network=network))
    message = start_from(cli, tmp_path / "w.pth").message()
    assert message == "left out (of a training, not of its network): epoch, criterion.weight"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<html></html>", "a web page"),
        (b"", "empty, a file of 0 bytes"),
        (pickle.dumps([1, 2]), "not a checkpoint: it holds a list"),
        (pickle.dumps(torch.ones(2)), "not a checkpoint: it holds a Tensor"),
    ],
)
def test_what_is_no_file_of_weights_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    cli: Any = SimpleNamespace(model=SimpleNamespace(network=nn.Linear(1, 1)))
    message = refused(capsys, lambda: start_from(cli, tmp_path / "w.pth"))
    assert message.startswith(f"exp: --weights {tmp_path}/w.pth: {said}")
    assert message.count("\n") == 1


def test_the_message_is_one_line() -> None:
    assert Start({}, {}, []).message() == ""
    start = Start({"gates": ["a", "b"]}, {"memory": ["c"]}, ["head.weight", "head.bias"])
    assert start.message() == (
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


DETR = "--config=configs/detection/detr_digits.yaml"
BACKBONE = "network.backbone"


def of_timm(path: Path, **options: Any) -> dict[str, Tensor]:
    """Saves a classifier of timm's with DETR's backbone."""
    network = timm.create_model("plain_conv", num_classes=7, **options)
    torch.save(network.state_dict(), path)
    return network.state_dict()


def test_a_backbone_starts_from_a_classifier_of_timms(tmp_path: Path) -> None:
    file = tmp_path / "plain_conv.pth"
    state = of_timm(file)
    cli = Cli([DETR, f"--weights.{BACKBONE}={file}"], "fit")
    before = {name: value.clone() for name, value in cli.model.network.state_dict().items()}
    assert weight_files(cli) == {BACKBONE: file}
    start = start_from(cli, file, BACKBONE)
    assert start == Start({}, {"layers behind the feature maps": ["head.fc.weight", "head.fc.bias"]}, [])
    body = cli.model.network.backbone.body
    assert torch.equal(body.stages_0[0].weight, state["stages.0.0.weight"])
    assert body.state_dict().keys() == {name.replace("stages.", "stages_") for name in state if "head" not in name}
    after = cli.model.network.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(name.startswith("backbone.body.") for name in changed)


def test_frozen_norms_take_no_counters(tmp_path: Path) -> None:
    file = tmp_path / "narrow_resnet.pth"
    state = timm.create_model("narrow_resnet").state_dict()
    torch.save(state, file)
    network = nn.Module()
    network.backbone = Features("narrow_resnet")
    cli: Any = SimpleNamespace(model=SimpleNamespace(network=network))
    start = start_from(cli, file, BACKBONE)
    assert start == Start({}, {"layers behind the feature maps": ["fc.weight", "fc.bias"]}, [])
    assert torch.equal(network.backbone.body.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])


def test_a_part_of_a_run_starts_the_same_part(tmp_path: Path) -> None:
    theirs = Cli([DETR, "--model.network.hidden_dim=32"], "fit").model
    torch.save({"state_dict": theirs.state_dict(), "global_step": 3}, tmp_path / "best.ckpt")
    cli = Cli([DETR], "fit")
    assert start_from(cli, tmp_path / "best.ckpt", BACKBONE) == Start({}, {}, [])
    weights, body = theirs.network.backbone.state_dict(), cli.model.network.backbone.state_dict()
    assert all(torch.equal(body[name], weights[name]) for name in weights)


def test_a_teacher_starts_from_the_network_of_a_run(tmp_path: Path) -> None:
    run, student, teacher = (timm.create_model("separable_tiny", num_classes=3) for _ in range(3))
    torch.save({"state_dict": {f"network.{k}": v for k, v in run.state_dict().items()}}, tmp_path / "run.ckpt")
    cli: Any = SimpleNamespace(model=SimpleNamespace(network=student, teacher=teacher))
    assert start_from(cli, tmp_path / "run.ckpt", "teacher") == Start({}, {}, [])
    assert torch.equal(teacher.conv_stem.weight, run.conv_stem.weight)
    assert not torch.equal(student.conv_stem.weight, run.conv_stem.weight)
    # The same part of a network that has one of this name.
    assert start_from(cli, tmp_path / "run.ckpt", "teacher.blocks") == Start({}, {}, [])


def test_a_backbone_starts_from_a_student_or_its_teacher(tmp_path: Path) -> None:
    learner = BYOL(timm.create_model("plain_conv", num_classes=0), hidden_dim=8, out_dim=4)
    nn.init.constant_(next(iter(learner.teacher.backbone.parameters())), 0.5)
    weights = {f"network.{name}": value for name, value in learner.state_dict().items()}
    for said, side in ({}, learner.student), ({"published": "teacher"}, learner.teacher):
        torch.save({"state_dict": weights} | said, tmp_path / "run.ckpt")
        cli = Cli([DETR], "fit")
        start = start_from(cli, tmp_path / "run.ckpt", BACKBONE)
        assert start.message() == f"the {said.get('published', 'student')}'s backbone is taken (18 tensors)"
        body = cli.model.network.backbone.body
        assert torch.equal(body.stages_0[0].weight, side.backbone.stages[0][0].weight)


def test_what_starts_a_network_says_of_its_parts_holds_for_a_part(tmp_path: Path) -> None:
    state = timm.create_model("hrnet_w18_small_v2").state_dict()
    torch.save(state, tmp_path / "hrnet.pth")
    assert convert.main([str(tmp_path / "hrnet.pth"), str(tmp_path / "trunk.safetensors")]) == 0
    cli = Cli([POSE, "--model.init_args.network.init_args.stages=w18_small_v2"], "fit")
    message = start_from(cli, tmp_path / "trunk.safetensors", BACKBONE).message()
    assert message.startswith("left out: fusion into coarser branches (")
    assert torch.equal(cli.model.network.backbone.conv2.weight, state["conv2.weight"])


def test_parts_of_the_command_join_those_of_the_config(tmp_path: Path) -> None:
    for name in ("whole.pth", "part.pth"):
        (tmp_path / name).touch()
    whole, part = tmp_path / "whole.pth", tmp_path / "part.pth"
    config = tmp_path / "weights.yaml"
    expected = {"network": whole, BACKBONE: part, f"{BACKBONE}.body": part}
    for text in (f"weights: {whole}\n", f"weights: {{network: {whole}, {BACKBONE}: {whole}}}\n"):
        config.write_text(text)
        parts = [f"--weights.{BACKBONE}.body={part}", f"--weights.{BACKBONE}", str(part)]
        cli = Cli([DETR, f"--config={config}", *parts], "fit")
        # What is whole comes first, so that its parts come to stay.
        assert list(weight_files(cli).items()) == list(expected.items())
        assert cli.plain["weights"] == {name: str(path) for name, path in expected.items()}
    assert Cli([DETR, f"--weights={whole}"], "fit").plain["weights"] == str(whole)


def test_what_is_no_start_for_a_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.pth"
    of_timm(file, widths=[8, 8, 8, 8])
    cli = Cli([DETR], "fit")

    def message(part: str, path: Path = file) -> str:
        return refused(capsys, lambda: start_from(cli, path, part))

    assert f"--weights.{BACKBONE} {file}: weights of another size than DETR's: backbone.body." in message(BACKBONE)
    assert "keys do not fit DETR: missing transformer." in message("network.transformer")
    assert "no such file" in message(BACKBONE, tmp_path / "none.pth")
    assert f"no part 'network.backbon'; did you mean '{BACKBONE}'?" in message("network.backbon")
    assert "no part 'teacher'; choose from network" in message("teacher")
    unknown = refused(capsys, lambda: weight_files(Cli([DETR, f"--weights.teacher={file}"], "fit")))
    assert "no part 'teacher'" in unknown
    evaluated = refused(capsys, lambda: to_evaluate(Cli([DETR, f"--weights.{BACKBONE}={file}"], "validate")))
    assert f"validate needs the whole network, by --weights FILE: --weights.{BACKBONE} only start" in evaluated


def test_fit_starts_from_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]}
    file = tmp_path / "part.pth"
    torch.save(timm.create_model("convnext_atto", num_classes=7, **options).state_dict(), file)
    quick = ["--trainer.fast_dev_run=true", "--wandb=disabled", f"--runs={tmp_path}", f"--weights.network.head={file}"]
    assert fit.main(["--config=configs/quickstart.yaml", f"--model.network.options={options}", *quick]) == 0
    message = "part.pth: another number of classes, so head.fc.weight, head.fc.bias start afresh"
    assert message in capsys.readouterr().out


def test_what_a_run_started_from_is_not_asked_for_again(tmp_path: Path) -> None:
    gone = f"weights: {tmp_path / 'gone.safetensors'}\n"
    config = gone + Path("configs/quickstart.yaml").read_text()
    torch.save({"exp_config": config}, tmp_path / "best.ckpt")
    cli = Cli([f"--ckpt_path={tmp_path / 'best.ckpt'}"], "validate")
    assert to_evaluate(cli) == tmp_path / "best.ckpt"
