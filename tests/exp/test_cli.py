"""What a person types, and what is said to mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from exp.beforehand import check
from exp.cli import Cli, resolve
from exp.fit import main as fit
from exp.usage import UsageError
from tests.library.runner import SMALL, run

ROOT = Path(__file__).parents[2]

EARLY = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/topp1}}"
MISTAKES = {
    "trainr.max_epochs=3": "unknown option 'trainr.max_epochs'; did you mean 'trainer.max_epochs'?",
    "trainer.max_epoch=3": "unknown option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?",
    "trainer.max_epochs=abc": "trainer.max_epochs: expected int, got 'abc'",
    "trainer.precision=8": "trainer.precision: '8' is not a choice",
    "config=configs/quickstrt.yaml": "did you mean 'configs/quickstart.yaml'?",
    "model=Clasification": "model: no class 'Clasification'; did you mean 'Classification'?",
    "model.label_smoothin=0.1": "has no argument 'label_smoothin'; did you mean 'label_smoothing'?",
    "model.network.num_clases=3": "timm_classifier has no argument 'num_clases'; did you mean 'num_classes'?",
    "model.network.name=convnext_atoo": "did you mean convnext_atto",
    "model.network=models.classifiers.timm_classifer": "did you mean 'timm_classifier'?",
    "model.network.options.dephts=[1, 1, 1, 1]": "convnext_atto takes no dephts",
    "model.optimizer=torch.optim.AdamV": "torch.optim has no 'AdamV'; did you mean 'Adam'?",
    "model.optimizer.lrr=1": "torch.optim.AdamW has no argument 'lrr'; did you mean 'lr'?",
    "model.optimizer.lr=fast": "model.init_args.optimizer.lr: expected float, got 'fast'",
    "model.schedule=WarmupCosin": "no class 'WarmupCosin'; did you mean 'WarmupCosine'?",
    "model.mix.mode=foo": "'foo' is not a choice; choose from batch, elem, pair",
    "data=Digit": "data: no class 'Digit'; did you mean 'Digits'?",
    "data.batch_size=big": "data.init_args.batch_size: expected int, got 'big'",
    "data.batch_size=0": "batch_size=0 must be at least 1",
    "data.train_transforms=[{class_path: albumentations.HorizontalFlop}]": "did you mean 'HorizontalFlip'?",
    "wandb=ofline": "wandb: 'ofline' is not a choice; did you mean 'offline'?",
    "checkpoint.mode=best": "checkpoint.mode is 'best', must be 'min' or 'max'",
    "trainer.callbacks=WeightEMAA": "no class 'WeightEMAA'; did you mean 'WeightEMA'?",
}


# What Lightning and the callbacks of others refuse when they are built.
MISTAKES |= {
    "trainer.devices=0": "trainer: `Trainer(devices='0')` value is not a valid input using cpu accelerator",
    "trainer.callbacks=lightning.pytorch.callbacks.LearningRateFinder": "follows model.schedule",
    "trainer.accelerator=tpu": "trainer: Requirement 'torch_xla",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_mistake_is_answered_in_one_line(argument: str, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    ended = run("fit", ["--config=configs/quickstart.yaml", f"--{argument}"], tmp_path)
    assert ended.code == 2, ended.output
    lines = ended.output.strip().splitlines()
    assert len(lines) == 1, ended.output
    assert lines[0].startswith("exp: ")
    assert MISTAKES[argument] in lines[0]
    assert not (tmp_path / "runs").exists()


def test_what_is_typed_counts_before_a_config_file_after_it() -> None:
    config = f"--config={ROOT / 'configs/quickstart.yaml'}"
    for argv in (["--trainer.max_epochs=7", config], [config, "--trainer.max_epochs=7"]):
        assert resolve(argv)["trainer"]["max_epochs"] == 7
    assert resolve(["--trainer.max_epochs", "7", *config.split("=")])["trainer"]["max_epochs"] == 7


def test_defaults_that_are_enumerations_are_written_as_texts() -> None:
    timer = "{class_path: lightning.pytorch.callbacks.Timer, init_args: {duration: '00:00:00:10'}}"
    plain = resolve([f"--config={ROOT / 'configs/quickstart.yaml'}", f"--trainer.callbacks={timer}"])
    assert plain["trainer"]["callbacks"]["init_args"]["interval"] == "step"


def test_norms_are_not_synchronised_on_cpus(capsys: pytest.CaptureFixture[str]) -> None:
    synchronised = [*SMALL, "--trainer.strategy=ddp", "--trainer.sync_batchnorm=true"]
    with pytest.raises(UsageError):
        Cli([*synchronised, "--trainer.devices=2"], "fit")
    answer = capsys.readouterr().err.strip().splitlines()[-1]
    assert answer.startswith("exp: PyTorch synchronises batch norms on GPUs only, and these 2 processes run on CPUs: ")
    # One process has nothing to synchronise.
    assert Cli([*synchronised, "--trainer.devices=1"], "fit").trainer.world_size == 1


@pytest.mark.parametrize(
    "config", ["segmentation/adpc_digits", "pose/adpc_figures", "segmentation/dynamic_routing_digits"]
)
def test_networks_that_take_minutes_to_compile_are_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--config=configs/pose/hrnet_figures.yaml"] if "pose" in config else []
    with pytest.raises(UsageError):
        Cli([*base, f"--config=configs/{config}.yaml", "--model.compile=true"], "fit")
    (answer,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("exp: ")]
    assert "does not suit torch.compile: " in answer
    assert answer.endswith("Set --model.compile=false")


def test_null_reaches_a_class_within_a_class() -> None:
    config = ROOT / "configs/segmentation/adpc_digits.yaml"
    plain = resolve([f"--config={config}", "--model.network.threshold=null", "--model.network.pooled_dim=null"])
    options = plain["model"]["init_args"]["network"]["init_args"]
    assert options["threshold"] is None
    assert options["pooled_dim"] is None


def test_mistake_in_a_file_names_key_and_choice(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("trainer: {max_epochs: 1}\nmodell: {class_path: Classification}\n")
    ended = run("fit", ["--config=mine.yaml"], tmp_path)
    assert ended.code == 2
    assert ended.output.strip() == "exp: unknown key 'modell'; did you mean 'model'?"


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("--trainer.max_epochs=-1", "the schedule needs an end"),
        ("--trainer.limit_train_batches=0", "leaves no batch to train on"),
        ("--data.batch_size=4096", "training samples are fewer than one optimiser step takes"),
        pytest.param(
            "--trainer.accelerator=gpu",
            "this machine has no GPU that PyTorch can use",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        ("--model.network.num_classes=7", "the network has 7 classes but the data has 10"),
        ("--checkpoint.monitor=val/map", "checkpoint.monitor is 'val/map', but validation logs val/loss, val/top1"),
        (f"--trainer.callbacks={EARLY}", "EarlyStopping.monitor is 'val/topp1', but validation logs val/loss"),
    ],
)
def test_what_is_known_beforehand_is_refused_before_there_is_a_run(
    argument: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        fit([*SMALL, "--wandb=offline", argument])
    assert stopped.value.code == 2
    told = capsys.readouterr()
    assert answer in told.err
    assert (told.err.count("\n"), told.out) == (1, "")
    assert not list(tmp_path.iterdir())


class Sharpness(Callback):
    """Somebody's own, that logs a metric which no task has."""

    logs = ("val/sharpness",)


def test_what_a_callback_says_it_logs_is_known_beforehand(capsys: pytest.CaptureFixture[str]) -> None:
    own = f"{Sharpness.__module__}.Sharpness"
    stopping = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/%s}}"
    argv = [*SMALL, "--wandb=disabled"]
    cli = Cli([*argv, f"--trainer.callbacks=[{own}, {stopping % 'sharpness'}]"], "fit")
    cli.datamodule.setup("fit")
    check(cli)
    cli = Cli([*argv, f"--trainer.callbacks=[{own}, {stopping % 'sharpnes'}]"], "fit")
    cli.datamodule.setup("fit")
    with pytest.raises(UsageError):
        check(cli)
    assert "'val/sharpnes', but validation logs val/loss, val/sharpness, val/top1" in capsys.readouterr().err


class Unsaid(Callback):
    """Somebody's own, that does not say what it logs."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val/sharpness", 1.0)


def test_what_a_callback_logs_that_does_not_say_so_is_left_to_the_trial_validation() -> None:
    own = f"{Unsaid.__module__}.Unsaid"
    stopping = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/sharpness}}"
    cli = Cli([*SMALL, "--wandb=disabled", f"--trainer.callbacks=[{own}, {stopping}]"], "fit")
    cli.datamodule.setup("fit")
    check(cli)


def test_help_is_quick_and_lists_every_command() -> None:
    code = "import sys, exp.__main__ as m; m.main(['--help']); assert 'torch' not in sys.modules; print(m.COMMANDS)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for command in ("fit", "validate", "test", "predict", "profile", "convert"):
        assert any(line.strip().startswith(command) for line in shown.splitlines())


def test_unknown_command() -> None:
    ended = subprocess.run([sys.executable, "-m", "exp", "ft"], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stderr == "exp: unknown command 'ft': did you mean 'fit'?\n"


def test_names_are_utf8_in_any_locale() -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "exp", "fêt"]
    ended = subprocess.run(command, capture_output=True, cwd=ROOT, env=os.environ | ascii_only)
    assert ended.stderr.decode() == "exp: unknown command 'fêt': did you mean 'fit'?\n"


def test_configs_merge_and_print_config_round_trips(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text((ROOT / "configs/quickstart.yaml").read_text())
    (tmp_path / "b.yaml").write_text("trainer: {max_epochs: 7}\nmodel: {init_args: {label_smoothing: 0.3}}\n")
    arguments = ["--config=a.yaml", "--config=b.yaml", "--trainer.log_every_n_steps=3", "--print_config"]
    printed = run("fit", arguments, tmp_path)
    assert printed.code == 0, printed.output
    config = yaml.safe_load(printed.output)
    assert config["trainer"]["max_epochs"] == 7
    assert config["trainer"]["log_every_n_steps"] == 3
    assert config["model"]["init_args"]["label_smoothing"] == 0.3
    assert config["model"]["init_args"]["network"]["init_args"]["name"] == "convnext_atto"
    (tmp_path / "c.yaml").write_text(printed.output)
    again = run("fit", ["--config=c.yaml", "--print_config"], tmp_path)
    assert again.output == printed.output


def test_missing_data_leaves_no_run_directory(tmp_path: Path) -> None:
    ended = run("fit", [*SMALL, "--data=ImageFolder", "--data.root=nowhere"], tmp_path)
    assert ended.code == 1
    assert "nowhere/train" in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "runs").exists()


def test_an_overlay_without_its_recipe_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "overlay.yaml").write_text("model: {init_args: {network: {init_args: {name: resnet18}}}}\n")
    ended = run("fit", ["--config=overlay.yaml"], tmp_path)
    assert ended.code == 2
    assert "goes after the one it changes" in ended.output
