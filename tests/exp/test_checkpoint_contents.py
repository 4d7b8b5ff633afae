"""What a checkpoint holds is believed only if it is of the kind that belongs there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from exp import predict, validate
from exp.checkpoint_contents import check_contents, misfit
from exp.cli import Cli
from exp.trust import Distrust
from tests.library.recipes import ROOT

QUICKSTART = f"--config={ROOT / 'configs/quickstart.yaml'}"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    cli = Cli([QUICKSTART, "--trainer.logger=false"], "fit")
    return {
        "state_dict": cli.model.state_dict(),
        "exp_config": yaml.safe_dump(cli.plain),
        "callbacks": {},
        "class_names": [str(digit) for digit in range(10)],
        "epoch": 1,
        "global_step": 5,
        "pytorch-lightning_version": "2.6.0",
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("zero.png")
    return tmp_path


STRANGE: dict[str, tuple[Any, str]] = {
    "callbacks": ([1], "its 'callbacks' is a list"),
    "class_names": ("abc", "its 'class_names' is a str"),
    "epoch": (True, "its 'epoch' is a bool"),
    "global_step": ("5", "its 'global_step' is a str"),
    "loops": (3, "its 'loops' is a int"),
    "optimizer_states": ({}, "its 'optimizer_states' is a dict"),
    "pytorch-lightning_version": (2.6, "its 'pytorch-lightning_version' is a float"),
    "state_dict": ([torch.zeros(1)], "its 'state_dict' is a list"),
}


@pytest.mark.parametrize("part", STRANGE)
def test_a_part_of_another_kind(part: str, content: dict[str, Any]) -> None:
    value, message = STRANGE[part]
    with pytest.raises(Distrust, match=f"^s.ckpt: {message}"):
        check_contents(Path("s.ckpt"), content | {part: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dict": {"a": 1}}, "its weights have a int under the name 'a'"),
        ({"state_dict": {5: torch.zeros(1)}}, "its weights have a Tensor under the name 5"),
        ({"class_names": [0, 1]}, "its names of classes have a int"),
        ({"class_names": ["x" * 2000]}, "or a text without end"),
        ({"class_names": ["\x1b[2J"]}, "commands the screen"),
    ],
)
def test_a_part_of_a_part(changes: dict[str, Any], message: str, content: dict[str, Any]) -> None:
    with pytest.raises(Distrust) as refusal:
        check_contents(Path("s.ckpt"), content | changes)
    assert message in str(refusal.value)


def test_what_belongs_there(content: dict[str, Any]) -> None:
    check_contents(Path("s.ckpt"), content)
    check_contents(Path("s.ckpt"), content | {"class_names": ["Großer Panda", "猫", "a\u00a0b"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"callbacks": {"Checkpoints": {"x": 1}}}, "KeyError: 'best_score'"),
        ({"callbacks": {"Checkpoints": 5}}, "TypeError"),
        ({"pytorch-lightning_version": "evil"}, "Invalid version: 'evil'"),
        ({"loops": {"fit_loop": 5}}, "'predict_loop'"),
        ({"state_dict": {}}, "the checkpoint is of another network: it has nothing for network.stem.0.weight"),
    ],
)
def test_what_does_not_fit_is_one_line(
    changes: dict[str, Any], message: str, content: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content | changes, "s.ckpt")
    assert predict.main(["--ckpt_path=s.ckpt", "--trainer.accelerator=cpu", "zero.png"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("exp:")]
    assert len(said) == 1
    assert said[0].startswith("exp: s.ckpt: ")
    assert message in said[0]
    assert not (folder / "predict").exists()


def test_names_of_too_few_classes(content: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content | {"class_names": ["one"]}, "s.ckpt")
    assert predict.main(["--ckpt_path=s.ckpt", "--trainer.accelerator=cpu", "zero.png"]) == 1
    assert "s.ckpt: it names 1 classes, but its network tells 10 apart" in capsys.readouterr().err


def test_what_fits_is_used(content: dict[str, Any], folder: Path) -> None:
    """Also of a config with a callback that would write elsewhere, which has a state in the checkpoint."""
    config = yaml.safe_load(content["exp_config"])
    config["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "elsewhere"}}]
    state = {"ModelCheckpoint{'monitor': None}": {"best_k_models": {"zero.png": torch.tensor(1.0)}, "dirpath": "."}}
    torch.save(content | {"exp_config": yaml.safe_dump(config), "callbacks": state}, "s.ckpt")
    assert validate.main(["--ckpt_path=s.ckpt", "--trainer.accelerator=cpu"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["s.ckpt", "validate", "zero.png"]


def test_other_errors_are_no_misfits() -> None:
    with pytest.raises(KeyError) as fault:
        content_of({})
    assert misfit(fault.value) is None


def content_of(checkpoint: dict[str, Any]) -> Any:
    return checkpoint["fault"]
