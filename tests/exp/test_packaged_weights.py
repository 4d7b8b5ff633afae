"""Weights of installed packages: `--weights package`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sklearn.datasets
import timm
import torch
from torch import nn

from exp import packaged_weights, predict
from exp.cli import Cli
from exp.packaged_weights import DISTRIBUTIONS, PACKAGE, file_of, in_timms_names, network_of, networks_in
from exp.usage import UsageError
from exp.weight_files import read
from exp.weights import start_from, to_evaluate, weight_files
from models.detectors.features import Features
from models.official import LayoutError
from models.pixels import HALVES
from tests.library.recipes import ROOT
from tests.library.refusals import refused

LITE0 = "tf_efficientnet_lite0"
CONFIG = "--config=configs/classification/efficientnet_lite0.yaml"
PHOTOGRAPHS = Path(sklearn.datasets.__file__).parent / "images"


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a package with weights of a network among the installed ones."""

    def install(network: str, state: dict[str, torch.Tensor] | None) -> Path:
        name = f"{network.replace('_', '-')}-of-a-test"
        monkeypatch.setitem(DISTRIBUTIONS, network, name)
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        file = tmp_path / "holds_weights" / "some-57934424.pth"
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "RECORD").write_text("holds_weights/__init__.py,,\nholds_weights/some-57934424.pth,,\n")
        file.parent.mkdir()
        # It would end the test, were it imported.
        (file.parent / "__init__.py").write_text("raise SystemExit(3)\n")
        if state is not None:
            torch.save(state, file)
        monkeypatch.syspath_prepend(str(tmp_path))
        return file

    return install


def published(network: str, classes: int = 1000) -> dict[str, torch.Tensor]:
    """Weights as a package has them: timm's order, other names."""
    state = timm.create_model(network, num_classes=classes).state_dict()
    return {f"_part{i}.{name.split('.')[-1]}": value for i, (name, value) in enumerate(state.items())}


def test_photographs_get_their_labels(tmp_path: Path) -> None:
    photographs = [str(PHOTOGRAPHS / name) for name in ("china.jpg", "flower.jpg")]
    assert predict.main([CONFIG, f"--runs={tmp_path}", "--data.num_workers=0", *photographs]) == 0
    with (tmp_path / LITE0 / "predict/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["file"]).name, row["label_1"]) for row in rows] == [
        ("china.jpg", "palace"),
        ("flower.jpg", "daisy"),
    ]
    assert [float(row["probability_1"]) for row in rows] == pytest.approx([0.3167, 0.3684], abs=5e-3)


def test_another_number_of_classes_starts_afresh(capsys: pytest.CaptureFixture[str]) -> None:
    command = [CONFIG, "--model.network.num_classes=5"]
    cli = Cli(command, "fit")
    before = cli.model.network.classifier.weight.clone()
    ((part, file),) = weight_files(cli).items()
    assert (part, network_of(file)) == ("network", LITE0)
    start = start_from(cli, file, part)
    assert start.message() == "another number of classes, so classifier.weight, classifier.bias start afresh"
    network, theirs = cli.model.network, read(file)
    assert torch.equal(network.conv_stem.weight, theirs["_conv_stem.weight"])
    assert torch.equal(network.blocks[6][0].bn3.running_var, theirs["_blocks.15._bn2.running_var"])
    assert torch.equal(network.bn2.bias, theirs["_bn1.bias"])
    assert torch.equal(network.classifier.weight, before)
    assert start.pixels.pixels is not None
    assert (start.pixels.pixels.mean, start.pixels.pixels.std) == (HALVES["mean"], HALVES["std"])
    assert (start.pixels.pixels.size, start.pixels.pixels.crop) == ((224, 224), 0.875)
    assert not start.pixels.silent
    assert "nothing for classifier.weight, classifier.bias; train it by" in refused(
        capsys, lambda: to_evaluate(Cli(command, "validate"))
    )


def test_a_network_of_timms_is_found_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    network = nn.Module()
    network.backbone = Features(LITE0, frozen_stages=0)
    cli: Any = SimpleNamespace(
        model=SimpleNamespace(network=network), config=SimpleNamespace(weights=PACKAGE, runs="runs"), held_back={}
    )
    assert networks_in(network) == {"backbone.body": LITE0}
    cli.model = nn.ModuleDict({"network": network})
    cli.model.network = network
    ((part, file),) = weight_files(cli).items()
    assert part == "network.backbone.body"
    start = start_from(cli, file, part)
    theirs = read(file)
    assert torch.equal(network.backbone.body.blocks[6][0].bn3.running_var, theirs["_blocks.15._bn2.running_var"])
    behind = {name.partition(".")[0] for name in start.spare["layers behind the feature maps"]}
    assert behind == {"conv_head", "bn2", "classifier"}


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("resnet18", "no package has weights of resnet18: there are some of tf_efficientnet_lite0, tf_efficientnet_"),
        # Whose padding is another one: with these weights it is right less often.
        ("efficientnet_lite0", "no package has weights of efficientnet_lite0: there are some of tf_efficientnet_lite0"),
    ],
)
def test_networks_without_a_package(capsys: pytest.CaptureFixture[str], network: str, said: str) -> None:
    cli = Cli([CONFIG, f"--model.network.name={network}", "--model.network.num_classes=2"], "fit")
    message = refused(capsys, lambda: weight_files(cli))
    assert message.startswith(f"exp: --weights package: {said}")
    assert message.count("\n") == 1


def test_packages_that_are_not_there(
    installed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [CONFIG, "--model.network.name=tf_efficientnet_lite1", "--model.network.num_classes=2"]
    cli = Cli(command, "fit")
    monkeypatch.setitem(DISTRIBUTIONS, "tf_efficientnet_lite1", "a-package-of-nobody")
    assert refused(capsys, lambda: weight_files(cli)) == (
        "exp: --weights package: a-package-of-nobody, which has the weights of tf_efficientnet_lite1, is not "
        "installed: pip install 'exp[weights]'\n"
    )
    installed("tf_efficientnet_lite1", None)
    message = refused(capsys, lambda: weight_files(cli))
    assert "is installed without the weights of tf_efficientnet_lite1: pip install --force-reinstall tf-eff" in message
    cli = Cli(["--config=configs/classification/ranet_small_cifar10.yaml", "--weights=package"], "fit")
    assert "--weights package: RANet has no network of timm's" in refused(capsys, lambda: weight_files(cli))


def test_a_package_is_read_and_not_imported(installed: Callable[..., Path]) -> None:
    state = published(LITE0)
    file = installed(LITE0, state)
    assert file_of(LITE0) == file
    assert network_of(file) == LITE0
    assert network_of(file.parent / "other.pth") is None
    cli = Cli([CONFIG], "validate")
    assert to_evaluate(cli) == file
    own = cli.model.network.state_dict()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own.values(), state.values(), strict=True))
    assert packaged_weights.class_names(file)[:2] == ["tench", "goldfish"]


def test_tensors_of_other_positions_are_refused(
    installed: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    state = published(LITE0)
    assert list(in_timms_names(LITE0, state))[-1] == "classifier.bias"
    # Of one shape, and of another kind.
    names = list(state)
    mean, variance = (next(name for name in names if name.endswith(end)) for end in ("running_mean", "running_var"))
    at = names.index(mean)
    swapped = dict([*list(state.items())[:at], (variance, state[variance]), (mean, state[mean])])
    swapped |= {name: state[name] for name in names[at + 2 :]}
    with pytest.raises(LayoutError, match=r"running_var \(32,\), in the place of bn1\.running_mean \(32,\)"):
        in_timms_names(LITE0, swapped)
    with pytest.raises(LayoutError, match="295 tensors, where it has 296"):
        in_timms_names(LITE0, dict(list(state.items())[:-1]))
    file = installed(LITE0, published(LITE0, classes=7))
    message = refused(capsys, lambda: to_evaluate(Cli([CONFIG], "validate")))
    assert message.startswith(f"exp: --weights {file}: not the weights of {LITE0}: _part")
    assert "weight (7, 1280), in the place of classifier.weight (1000, 1280)" in message
    assert message.count("\n") == 1


def test_a_part_alone_starts_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    cli = Cli([CONFIG, "--weights=null", f"--weights.network={PACKAGE}"], "fit")
    assert list(weight_files(cli)) == ["network"]
    with pytest.raises(UsageError):
        weight_files(Cli([CONFIG, "--weights=null", f"--weights.teacher={PACKAGE}"], "fit"))
    assert "--weights.teacher: there is no part 'teacher'" in capsys.readouterr().err
