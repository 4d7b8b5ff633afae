"""`compare --init`: configs in, and a claim file that runs as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from exp.claims.cells import OWN_KEYS
from exp.claims.claim_file import read_claim
from exp.claims.init import Measure, draft, init, read_sides
from exp.cli import resolve
from exp.compare import main

QUICKSTART = "configs/quickstart.yaml"
CLASSIFICATION, DETECTION = "configs/classification", "configs/detection"
MODEL = """
model:
  class_path: Classification
  init_args:
    network:
      class_path: models.classifiers.timm_classifier
      init_args:
        name: convnext_atto
        num_classes: 10
        options: {patch_size: 1, depths: [1, 1, 1, 1], dims: [4, 8, 8, 8], kernel_sizes: 3}
"""
TINY = MODEL + "data: {class_path: Digits, init_args: {batch_size: 128}}\ntrainer: {accelerator: cpu, max_epochs: 1}\n"


def resolved(*arguments: str) -> dict:
    return {key: value for key, value in resolve(list(arguments)).items() if key not in OWN_KEYS}


def drafted(folder: Path, *configs: str) -> Path:
    """A claim file of configs whose data need not be there."""
    path = folder / "claim.yaml"
    sides = read_sides([Path(config) for config in configs])
    path.write_text(draft(sides, Measure("val/top1", "max", True, []), {}, path))
    return path


@pytest.mark.parametrize(
    ("first", "second", "layers"),
    [
        (QUICKSTART, f"{CLASSIFICATION}/convnext_digits.yaml", True),
        ("configs/own_images.yaml", QUICKSTART, False),
        (f"{CLASSIFICATION}/convnext_cifar10.yaml", f"{CLASSIFICATION}/separable_cifar10.yaml", False),
        (f"{DETECTION}/smca_digits.yaml", f"{DETECTION}/detr_digits.yaml", False),
        (f"{DETECTION}/retinanet_r50_coco.yaml", f"{DETECTION}/mask_rcnn_convnext_coco.yaml", False),
        ("configs/pose/hrnet_figures.yaml", "configs/pose/adpc_figures.yaml", True),
        (QUICKSTART, f"{DETECTION}/solq_digits.yaml", False),
    ],
)
def test_an_arm_turns_the_first_config_into_the_other(tmp_path: Path, first: str, second: str, layers: bool) -> None:
    claim = read_claim(drafted(tmp_path, first, second))
    assert claim.configs == [first]
    reference, other = claim.arms.values()
    assert (claim.reference, reference.overrides) == (reference.name, {})
    wanted = resolved(*([f"--config={first}"] if layers else []), f"--config={second}")
    assert resolved(f"--config={first}", *other.arguments()) == wanted
    assert claim.expectations[0].text == f"{other.name} > {reference.name}"


def test_what_an_arm_says_is_as_short_as_its_config_says_it(tmp_path: Path) -> None:
    text = drafted(tmp_path, QUICKSTART, f"{CLASSIFICATION}/convnext_digits.yaml").read_text()
    assert yaml.safe_load(text)["arms"]["convnext_digits"] == {
        "trainer.callbacks": [{"class_path": "WeightEMA", "init_args": {"decay": 0.99}}],
        "trainer.max_epochs": 120,
        "model.network.drop_path_rate": 0.1,
        "model.mix": {"mixup": 0.2, "cutmix": 1.0, "prob": 0.5},
        "model.schedule.warmup_epochs": 5,
    }
    assert max(len(line) for line in text.splitlines() if "compare" not in line) <= 120
    # Every key has its comment.
    lines = [line for line in text.splitlines() if line]
    for key in ("claim", "config", "metric", "at", "better", "unit", "seeds", "arms", "expect"):
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert lines[place - 1].startswith("#"), key


def test_where_a_run_computes_can_be_what_differs(tmp_path: Path) -> None:
    claim = read_claim(drafted(tmp_path, QUICKSTART, "configs/hardware/cpu_ddp.yaml"))
    assert claim.arms["cpu_ddp"].overrides == {"trainer.strategy": "ddp", "trainer.devices": 2}


def test_a_class_in_place_of_another_is_said_whole_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TINY.replace("options:", "drop_path_rate: 0.3\n        options:"))
    kernels = TINY.replace("timm_classifier", "dynamic_kernels").replace(
        "options:", "kinds: [pointwise]\n        layer: cond_conv\n        options:"
    )
    (tmp_path / "b.yaml").write_text(kernels)
    arm = read_claim(drafted(tmp_path, f"{tmp_path}/a.yaml", f"{tmp_path}/b.yaml")).arms["b"]
    (key, network) = next(iter(arm.overrides.items()))
    assert (key, network["class_path"]) == ("model.network", "models.classifiers.dynamic_kernels")
    # `dynamic_kernels` would inherit what `timm_classifier` has been given and takes, too.
    assert network["init_args"]["drop_path_rate"] == 0.0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # A text that YAML takes for a truth value, a key that is left out, one with a dot in it.
        ("kernel_sizes: 3}", "kernel_sizes: 3, act_layer: 'no'}"),
        (", kernel_sizes: 3}", "}"),
        ("    network:", "    lr_multipliers: {stem.0: 0.1, head: 2.0}\n    network:"),
        ("num_classes: 10", "num_classes: 10\n        pretrained: true"),
        ("trainer: {", "trainer: {callbacks: [{class_path: WeightEMA, init_args: {decay: 0.5}}], "),
        ("model:", "checkpoint: {monitor: val/loss, mode: min}\nmodel:"),
    ],
)
def test_whatever_differs_is_told(tmp_path: Path, old: str, new: str) -> None:
    assert old in TINY
    (tmp_path / "a.yaml").write_text(TINY)
    (tmp_path / "b.yaml").write_text(TINY.replace(old, new))
    a, b = f"{tmp_path}/a.yaml", f"{tmp_path}/b.yaml"
    for first, second in ((a, b), (b, a)):
        _, arm = read_claim(drafted(tmp_path, first, second)).arms.values()
        assert len(arm.overrides) == new.count("{monitor") + 1
        assert resolved(f"--config={first}", *arm.arguments()) == resolved(f"--config={second}")


def test_the_metric_is_the_one_that_chooses_the_best_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(TINY)
    (tmp_path / "2-smooth.yaml").write_text(TINY.replace("    network:", "    label_smoothing: 0.1\n    network:"))
    (tmp_path / "macs.yaml").write_text(TINY.replace("batch_size: 128", "batch_size: 64"))
    configs = [tmp_path / name for name in ("plain.yaml", "2-smooth.yaml", "macs.yaml")]
    output = tmp_path / "smoothing.yaml"
    assert init(configs, output, ["--checkpoint.monitor=val/loss", "--checkpoint.mode=min"]) == output
    claim = read_claim(output)
    assert (claim.metric, claim.better, claim.percent, claim.at) == ("val/loss", "min", False, "last")
    assert [each.text for each in claim.expectations] == ["arm_2_smooth < plain", "arm_macs < plain"]
    assert (len(claim.seeds.listed), claim.seeds.looks[0]) == (16, 6)
    told = " ".join(output.read_text().replace("\n#", "").split())
    in_training = "train/images_per_second, train/loss, train/lr, train/top1"
    assert f"All arms log these, too: test/loss, test/top1, test/top5, {in_training}, val/top1, val/top5" in told
    for arm in claim.arms.values():
        assert arm.overrides["checkpoint.monitor"] == "val/loss"


def test_one_line_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(TINY)
    (tmp_path / "b.yaml").write_text(TINY.replace("batch_size: 128", "batch_size: 64"))
    monkeypatch.chdir(tmp_path)
    assert main(["--init", "a.yaml", "b.yaml"]) == 0
    said = capsys.readouterr().out
    assert "python -m exp compare --config b_vs_a.yaml --dry-run" in said
    assert len(said.splitlines()) == 1
    assert (read_claim(Path("b_vs_a.yaml")).metric, read_claim(Path("b_vs_a.yaml")).percent) == ("val/top1", True)
    assert main(["--config", "b_vs_a.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "--data.batch_size=64" in said
    assert said.count("seed") >= 12
    before = Path("b_vs_a.yaml").read_bytes()
    assert main(["--init", "a.yaml", "b.yaml"]) == 2
    assert "b_vs_a.yaml: exists already" in capsys.readouterr().err
    assert Path("b_vs_a.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.yaml"], "--init compares two configs or more"),
        (["a.yaml", "a.yaml"], "a.yaml says the same as a.yaml"),
        (["a.yaml", "same.yaml"], "same.yaml says the same as a.yaml"),
        (["a.yaml", "aa.yaml"], "no such config file: aa.yaml; did you mean 'a.yaml'?"),
        (["a.yaml", "."], ".: is a directory"),
        (["a.yaml", "torn.yaml"], "torn.yaml: while parsing"),
        (["a.yaml", "list.yaml"], "list.yaml: a config is a mapping"),
        (["a.yaml", "binary.yaml"], "binary.yaml: no text in UTF-8"),
        (["a.yaml", "typo.yaml"], "has no argument 'label_smoothin'; did you mean 'label_smoothing'?"),
        (["a.yaml", "wrong.yaml"], "wrong.yaml: num_classes=1: a classifier tells two classes or more apart"),
        (
            ["a.yaml", "under.yaml"],
            "under.yaml, on top of a.yaml: model: lightning_modules.Classification has no argument",
        ),
        (["over.yaml", "a.yaml"], "over.yaml names no model: a config that changes another goes after"),
        (["a.yaml", "boxes.yaml"], "each is judged by another one (a.yaml by val/top1, boxes.yaml by val/box_ap)"),
        (["a.yaml", "claim.yaml"], "claim.yaml is a claim already: python -m exp compare --config claim.yaml"),
        (["a.yaml", "over.yaml", "-o", "nowhere/claim.yaml"], "there is no folder nowhere"),
        (["a.yaml", "over.yaml", "-o", "a.yaml"], "a.yaml: exists already"),
        (["a.yaml", "over.yaml", "--config", "claim.yaml"], "give one of them"),
        (["a.yaml", "over.yaml", "--seed_everything=1"], "compare sets it for every cell"),
        (["a.yaml", "over.yaml", "--trainer.max_epoch=1"], "did you mean 'trainer.max_epochs'?"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    root = Path.cwd()
    for name, text in {
        "a": TINY,
        "same": f"experiment: another\nseed_everything: 3\n{TINY}",
        "torn": "model: {class_path: [",
        "list": "- a\n- b\n",
        "typo": TINY.replace("    network:", "    label_smoothin: 0.1\n    network:"),
        "wrong": TINY.replace("num_classes: 10", "num_classes: 1"),
        "over": "trainer: {max_epochs: 2}\n",
        "under": "model: {init_args: {smoothing: 0.1}}\n",
        "boxes": (root / DETECTION / "detr_digits.yaml").read_text(),
        "claim": (root / "configs/claims/smca.yaml").read_text(),
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["--init", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("exp: ")
    assert len(said.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
