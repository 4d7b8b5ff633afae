"""What `--help` shows, and what is said to options that are called otherwise."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from lightning.pytorch import LightningDataModule, LightningModule

import datamodules
import lightning_modules
import models.classifiers
from exp.__main__ import main
from exp.class_lists import classes_of
from exp.cli import Cli, resolve
from exp.completion import words
from exp.helping import HEADS, SCREENS, _flat
from exp.usage import ConfigError, UsageError
from tests.library.recipes import ROOT


def test_help_fits_a_screen_and_needs_no_torch() -> None:
    code = "import sys, exp.__main__ as m; m.main(['fit', 'quickstart', '--help']); assert 'torch' not in sys.modules"
    screen = os.environ | {"COLUMNS": "100"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=screen
    )
    lines = ended.stdout.splitlines()
    assert len(lines) <= 50
    (row,) = [line for line in lines if "--trainer.max_epochs=N" in line]
    assert row.endswith("how long [60]"), "what the config says"


def test_a_screen_shows_options_that_there_are() -> None:
    known = dict(_flat(resolve([f"--config={ROOT / 'configs/own_images.yaml'}"]), ""))
    # Resolving takes out `trust`, `probe` is of two commands, and `find` leaves what it finds.
    known |= {"trust": None, "probe": None, "find": None}
    for command, groups in SCREENS.items():
        assert command in HEADS
        assert not {line.option for lines in groups.values() for line in lines} - set(known)


def test_predict_shows_its_images_and_what_each_task_can_write(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: exp predict RUN IMAGES [IMAGES ...]")
    assert "--score-threshold=FLOAT" in told
    assert "--deadline-ms=FLOAT" in told


@pytest.mark.parametrize(
    ("part", "package", "kind"),
    [("model", lightning_modules, LightningModule), ("data", datamodules, LightningDataModule)],
)
def test_classes_are_those_of_the_package(part: str, package: ModuleType, kind: type) -> None:
    offered = {name: getattr(package, name) for name in package.__all__}
    kinds = {name for name, each in offered.items() if inspect.isclass(each) and issubclass(each, kind)}
    listed = {each.name: each.about for each in classes_of(part)}
    assert set(listed) == {name for name in kinds if not inspect.isabstract(offered[name]) and name not in BASES}
    assert all(listed.values())


# What others are made of.
BASES = {"Task", "DataModule"}


def test_networks_are_classes_and_functions_that_build_one(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {each.path for each in classes_of("model.network")}
    assert {f"models.classifiers.{name}" for name in models.classifiers.__all__} <= listed
    assert "models.vqa.answer_loss" not in listed
    assert main(["fit", "--model.network.help"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  SOLQ ")]
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--model.help", "Classification"], "--model.channels_last=bool"),
        (["--model.help=lightning_modules.Classification"], "--model.label_smoothing=float"),
        (["--data.help", "ImageFolder"], "--data.batch_size=int"),
        (["--model.network.help", "timm_classifier"], "--model.network.name=str"),
    ],
)
def test_help_of_a_class_is_of_this_class_alone(
    argv: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *argv]) == 0
    told = capsys.readouterr().out
    assert shown in told
    assert "--trainer." not in told


def test_help_of_a_class_that_there_is_not_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model.network.help", "SOLK"]) == 2
    assert "there is no class 'SOLK'; did you mean 'SOLQ'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        ("", "no config is given: `exp configs` lists those that there are"),
        ("--data=Digits", "model: missing; give it in a config or by --model"),
        ("quickstart --lr 0.1", "unknown option 'lr'; did you mean 'model.optimizer.lr'?"),
        ("quickstart --batch-size=3", "did you mean 'data.batch_size'?"),
        ("quickstart --epochs=3", "did you mean 'trainer.max_epochs'?"),
        ("quickstart --model.lr=1", "did you mean 'model.optimizer.lr'?"),
        ("quickstart --model.optimiser.lr 0.1", "did you mean 'model.optimizer.lr'?"),
        ("quickstart --threads=1 mine.yaml", "say --config=mine.yaml, or put it right behind the command"),
        ("quickstart --threads=1 gpu", "say --config=gpu, or"),
    ],
)
def test_hints(argv: str, answer: str) -> None:
    words = argv.split()
    if words[:1] == ["quickstart"]:
        words[0] = f"--config={ROOT / 'configs/quickstart.yaml'}"
    with pytest.raises(ConfigError) as refusal:
        resolve(words)
    assert answer in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    files = [f"--config={ROOT / 'configs' / name}.yaml" for name in ("quickstart", "hardware/gpu")]
    with pytest.raises(UsageError):
        Cli(files, "fit")
    assert "no GPU that PyTorch can use: leave out gpu.yaml" in capsys.readouterr().err


def test_completion_knows_commands_configs_keys_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert {"fit", "predict", "compare"} <= set(words([]))
    assert {"quickstart", "solq_digits", "--trainer.max_epochs=", "--model.optimizer.lr="} <= set(words(["fit"]))
    assert "--model.label_smoothing=" in words(["fit", "quickstart"]), "what the config sets"
    assert "mine/best" in words(["predict"])
    assert "early_exit" in words(["compare"])
    assert "early_exit" not in words(["fit"])
    assert words(["fit", "--wandb", "="])[0] == "auto"
    assert "SOLQ" in words(["fit", "--model.network.help"])
    assert main(["completion", "bash"]) == 0
    script = (
        capsys.readouterr().out + 'COMP_WORDS=(exp fi); COMP_CWORD=1; exp() { echo fit; }; _exp; echo "${COMPREPLY[0]}"'
    )
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "fit"
