"""What CONTRIBUTING.md shows of a new task works as it stands there."""

from __future__ import annotations

import csv
import textwrap
from pathlib import Path

from tests.library.runner import run

ROOT = Path(__file__).parents[2]
CONFIG = """
model:
  class_path: mine.Yes
  init_args:
    network:
      class_path: models.classifiers.timm_classifier
      init_args:
        name: convnext_atto
        num_classes: 1
        options: {patch_size: 1, depths: [1, 1, 1, 1], dims: [4, 8, 8, 8], kernel_sizes: 3}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.003}}
    schedules: {weight_decay: {class_path: lightning_modules.WarmupCosine, init_args: {min_lr: 0.2}}}
data: {class_path: Digits, init_args: {batch_size: 128}}
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 2}
"""


def example(text: str, title: str) -> str:
    """The indented block of a section that defines classes."""
    section = text.split(f"## {title}")[1].split("\n## ")[0]
    lines = section.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("    import "))
    last = next(i for i in range(first, len(lines)) if lines[i] and not lines[i].startswith("    "))
    return textwrap.dedent("\n".join(lines[first:last]))


def test_a_new_task_and_its_report_need_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(example((ROOT / "CONTRIBUTING.md").read_text(), "Adding a task"))
    (tmp_path / "mine.yaml").write_text(CONFIG)
    ended = run("fit", ["--config=mine.yaml", "--wandb=disabled"], tmp_path)
    assert ended.code == 0, ended.output
    folder = tmp_path / "runs/mine/0"
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    said = [float(row["val/yes"]) for row in rows if row["val/yes"]]
    assert len(said) == 2
    assert {row["train/weight_decay"] for row in rows} > {""}
    for name in ("checkpoints/best.ckpt", "yes.txt", "plots/learning_curve.png", "plots/schedules.png"):
        assert (folder / name).stat().st_size > 0
        assert name in ended.output
    assert "positions of the images that got a yes" in ended.output
    checkpoint = "--ckpt_path=runs/mine/0/checkpoints/best.ckpt"
    ended = run("validate", [checkpoint], tmp_path)
    assert ended.code == 2
    assert "names mine.Yes" in ended.output
    assert "add --trust mine" in ended.output
    ended = run("validate", [checkpoint, "--trust", "mine"], tmp_path)
    assert ended.code == 0, ended.output
    positions = (folder / "validate/yes.txt").read_text().splitlines()
    assert len(positions) == round(max(said) * 180)
    ended = run("predict", [checkpoint, "--trust", "mine", "mine.yaml"], tmp_path)
    assert ended.code == 2
    assert "nothing writes what Yes predicts" in ended.output
