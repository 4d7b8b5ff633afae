"""README's pages in their order: each command finds what the one before it has left."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import yaml

from tests.library.class_folders import write_class_folders
from tests.library.runner import run

ROOT = Path(__file__).parents[2]
RESIZE = "[{class_path: albumentations.Resize, init_args: {height: 32, width: 32}}]"
SMALL = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.schedule.warmup_epochs=0",
    "--data.num_workers=0",
    "--wandb=disabled",
    f"--data.train_transforms={RESIZE}",
    f"--data.eval_transforms={RESIZE}",
]


def commands(section: str) -> list[list[str]]:
    """The commands of a section of README, without `python -m exp`."""
    text = (ROOT / "README.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"^    python -m exp (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line) for line in found]


def test_own_images_are_labelled_by_the_network_that_was_trained_on_them(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_class_folders(tmp_path / "data" / "mine", classes=5, images=4)
    # What `make quickstart` has left.
    quickstart = tmp_path / "runs" / "quickstart" / "0" / "checkpoints"
    quickstart.mkdir(parents=True)
    (quickstart / "best.ckpt").write_bytes(b"of another network")
    (fit, *fit_arguments), (predict, *predict_arguments) = commands("Your own images")

    trained = run(fit, [*fit_arguments, *SMALL], tmp_path)
    assert trained.code == 0, trained.output
    config = yaml.safe_load((tmp_path / "runs/own_images/0/config.yaml").read_text())
    assert config["threads"] is None

    assert predict_arguments.pop() == "some/images/"
    labelled = run(predict, [*predict_arguments, "data/mine/train/kind 2"], tmp_path)
    assert labelled.code == 0, labelled.output
    with (tmp_path / "runs/own_images/0/predict/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert {row["label_1"] for row in rows} <= {f"kind {label}" for label in range(5)}
