"""Official files where weights are asked for: recognised, translated in memory, and refused in one line."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from exp import validate
from exp.cli import Cli
from exp.weights import start_from, to_evaluate
from lightning_modules import FixMatch
from models.official import layout_of
from tests.library.official_networks import BUILD, weights
from tests.library.recipes import ROOT
from tests.library.refusals import refused

FIXMATCH = ["--config=configs/semi_supervised/fixmatch_digits.yaml"]
# The first variant of each system.
FIRST = list({name.split("/")[0]: name for name in reversed(BUILD)}.values())
# Whose published names are ours.
AS_PUBLISHED = ("condconv",)


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def with_network(name: str) -> Any:
    return SimpleNamespace(model=SimpleNamespace(network=BUILD[name]()))


@pytest.mark.parametrize("name", FIRST)
def test_every_official_file_enters_its_network(name: str, tmp_path: Path) -> None:
    ours, layout = weights(name), layout_of(name.split("/")[0])
    theirs = {f"module.{key}": value for key, value in layout.to_official(ours).items()}
    torch.save({"state_dict": theirs, "epoch": 3}, tmp_path / "theirs.pth")
    cli = with_network(name)
    start = start_from(cli, tmp_path / "theirs.pth")
    assert start.message() == (
        "" if name in AS_PUBLISHED else f"weights in the official {layout.title} layout, translated"
    )
    for key, value in cli.model.network.state_dict().items():
        assert torch.equal(value, ours[key].to(value.dtype)), key


@pytest.mark.parametrize(("name", "side"), [("dino", "teacher"), ("spatial_ensemble", "teacher"), ("moco", "student")])
def test_the_published_side_is_the_backbone_of_another_network(name: str, side: str, tmp_path: Path) -> None:
    ours, layout = weights(name), layout_of(name)
    torch.save({"state_dict": layout.to_official(ours)}, tmp_path / "theirs.pth")
    backbone = BUILD[name]().student.backbone
    cli: Any = SimpleNamespace(model=SimpleNamespace(network=backbone))
    start = start_from(cli, tmp_path / "theirs.pth")
    assert start.message().startswith(
        f"weights in the official {layout.title} layout, translated; the {side}'s backbone"
    )
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, ours[f"{side}.backbone.{key}"]), key


class FlatMapping(dict):
    """Pickled as Haiku's own dictionary of this name."""

    def __reduce__(self) -> tuple:
        return FlatMapping, (dict(self),)


class _ByolExperimentState(NamedTuple):
    online_params: dict
    target_params: dict
    online_state: dict
    target_state: dict
    opt_state: Any


def haiku_trees(flat: dict[str, Tensor]) -> dict[str, FlatMapping]:
    """Weights as a training in JAX has them: arrays, by path of a module and name of a tensor."""
    trees: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name, value in flat.items():
        tree, *path, leaf = name.split(".")
        path = ["res_net50", *path[1:]] if path[0] == "encoder" else path
        module = ("/" if path[0] != "res_net50" and len(path) < 3 else "/~/").join(path)
        trees.setdefault(tree, {}).setdefault(module, {})[leaf] = value.numpy()
        if leaf == "average":
            trees[tree][module] |= {"hidden": value.numpy() / 2, "counter": np.array(7)}
    for side in ("online", "target"):
        trees[f"{side}_params"]["classifier"] = {"w": np.ones((3, 2)), "b": np.ones(2)}
    trees["target_params"]["predictor/linear"] = {"w": np.ones((3, 2)), "b": np.ones(2)}
    return {
        tree: FlatMapping({path: FlatMapping(leaves) for path, leaves in own.items()}) for tree, own in trees.items()
    }


@pytest.mark.parametrize("kind", ["as published", "plain"])
def test_a_training_of_byol_in_jax_is_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = weights("byol")
    trees = haiku_trees(layout_of("byol").to_official(ours))
    assert {"res_net50/~/initial_conv", "projector/batch_norm", "projector/linear_1"} < trees["online_params"].keys()
    assert "res_net50/~/block_group_1/~/block_0/~/shortcut_batchnorm/~/mean_ema" in trees["online_state"]
    content: dict[str, Any] = dict(trees)
    if kind == "as published":
        # Classes that are not installed here: their names are all that a file has.
        for module, given in (
            ("haiku._src.data_structures", FlatMapping),
            ("byol.byol_experiment", _ByolExperimentState),
        ):
            monkeypatch.setattr(given, "__module__", module)
            monkeypatch.setitem(sys.modules, module.partition(".")[0], SimpleNamespace())  # type: ignore[misc]
            monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{given.__name__: given}))  # type: ignore[misc]
        state = _ByolExperimentState(**trees, opt_state=_ByolExperimentState(*[trees["online_params"]] * 5))
        content = {"experiment_state": state, "step": 312_000, "rng": np.zeros(2, np.uint32)}
        (tmp_path / "byol.pkl").write_bytes(pickle.dumps(content, protocol=2))
        monkeypatch.undo()
        assert b"haiku._src.data_structures" in (tmp_path / "byol.pkl").read_bytes()
    else:
        plain = {tree: {path: dict(leaves) for path, leaves in own.items()} for tree, own in content.items()}
        (tmp_path / "byol.pkl").write_bytes(pickle.dumps(plain))
    cli = with_network("byol")
    start = start_from(cli, tmp_path / "byol.pkl")
    assert start.layout == "BYOL"
    left_out = [note.partition(":")[0] for note in start.notes]
    assert left_out == [
        "left out (averages before their correction)",
        "left out (the classifier that watched the training)",
        "left out (the teacher's predictor, which has no use)",
    ]
    for key, value in cli.model.network.state_dict().items():
        assert torch.equal(value, ours[key]), key


def test_an_entry_may_be_called_as_the_part_that_it_is_for(tmp_path: Path) -> None:
    ours = weights("moco")
    torch.save({"network": ours}, tmp_path / "ours.pth")
    cli = with_network("moco")
    assert start_from(cli, tmp_path / "ours.pth").message() == ""
    assert torch.equal(cli.model.network.queue.keys, ours["queue.keys"])


def fixmatch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the config's network in the official layout, and averages of them."""
    network = Cli(FIXMATCH, "validate").model.network
    raw = layout_of("fixmatch").to_official(network.state_dict())
    return raw, {name: value + 1 for name, value in raw.items()}


def test_the_averages_of_a_file_are_the_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fixmatch.pth.tar"
    raw, averaged = fixmatch()
    for content, teachers in (({}, raw), ({"ema_state_dict": averaged}, averaged)):
        torch.save({"epoch": 3, "state_dict": raw, **content}, file)
        cli = Cli([*FIXMATCH, f"--weights={file}"], "validate")
        capsys.readouterr()
        assert to_evaluate(cli) == file
        told = capsys.readouterr().out.splitlines()[0]
        line = f"--weights {file}: weights in the official FixMatch layout, translated"
        assert told == line + ("; its averaged weights are the teacher" if content else "")
        assert isinstance(cli.model, FixMatch)
        assert torch.equal(cli.model.network.stem.weight, raw["conv1.weight"])
        assert torch.equal(cli.model.teacher.stem.weight, teachers["conv1.weight"])
        assert torch.equal(cli.model.teacher.norm.running_var, teachers["bn1.running_var"])


def test_without_a_teacher_the_averages_are_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fixmatch.pth.tar"
    raw, averaged = fixmatch()
    torch.save({"epoch": 3, "state_dict": raw, "ema_state_dict": averaged}, file)
    network = {"class_path": "models.classifiers.WideResNet", "init_args": {"depth": 10, "base_width": 8}}
    plain = [f"--model={{class_path: Classification, init_args: {{network: {network}}}}}", "--data=Digits"]
    cli = Cli([*plain, f"--weights={file}"], "validate")
    to_evaluate(cli)
    assert "translated; of them the averaged ones\n" in capsys.readouterr().out
    assert torch.equal(cli.model.network.stem.weight, averaged["conv1.weight"])
    # A training starts from the raw ones, as `convert` takes them.
    start_from(cli, file)
    assert torch.equal(cli.model.network.stem.weight, raw["conv1.weight"])


def test_a_run_brings_its_own_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Cli(FIXMATCH, "fit").model
    torch.nn.init.ones_(run.teacher.stem.weight)
    torch.save({"state_dict": run.state_dict()}, tmp_path / "best.ckpt")
    cli = Cli([*FIXMATCH, f"--weights={tmp_path / 'best.ckpt'}"], "validate")
    capsys.readouterr()
    to_evaluate(cli)
    assert "left out" not in capsys.readouterr().out
    assert torch.equal(cli.model.teacher.stem.weight, run.teacher.stem.weight)
    assert torch.equal(cli.model.network.stem.weight, run.network.stem.weight)


def test_validate_takes_an_official_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fixmatch.pth.tar"
    raw, averaged = fixmatch()
    # The averaged network says that everything is a seven.
    averaged |= {"fc.weight": torch.zeros(10, 64), "fc.bias": torch.eye(10)[7]}
    torch.save({"epoch": 3, "state_dict": raw, "ema_state_dict": averaged}, file)
    assert validate.main([*FIXMATCH, f"--weights={file}"]) == 0
    printed = capsys.readouterr().out
    assert f"--weights {file}: weights in the official FixMatch layout, translated; its averaged" in printed
    # As far from certain of all classes as one of ten is by a logit of 1.
    loss = json.loads((tmp_path / "validate" / "metrics.json").read_text())["val/loss"]
    assert loss == pytest.approx(torch.tensor([1.0] + [0.0] * 9).logsumexp(0).item() - 0.1, abs=0.02)


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "theirs.pth"

    def message(content: Any, name: str) -> str:
        torch.save(content, file)
        said = refused(capsys, lambda: start_from(with_network(name), file))
        assert said.startswith(f"exp: --weights {file}: ")
        assert said.count("\n") == 1
        return said

    moco = layout_of("moco").to_official(weights("moco"))
    said = message(moco, "dino")
    assert "weights in the official MoCo layout, which are not this network's (keys do not fit DINO: missing" in said
    assert said.endswith("): give a config whose network is MoCo's, of their size\n")
    said = message({name: value for name, value in moco.items() if name != "encoder_q.fc.0.bias"}, "moco")
    assert "keys do not fit the official MoCo layout: missing encoder_q.fc.0.bias; `python -m exp convert" in said
    said = message({"stranger.weight": torch.ones(1)}, "moco")
    assert said.endswith(
        "give weights of this network, or a file in an official layout that `python -m exp convert` knows\n"
    )
    ranet, dvt = (
        layout_of(name).to_official(weights(f"{name}{kind}")) for name, kind in (("ranet", ""), ("dvt", "/deit"))
    )
    assert "fit the official layout of more than one system (dvt, ranet); `python -m exp convert --system" in message(
        ranet | dvt, "ranet"
    )
