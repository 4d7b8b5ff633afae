"""Questions about images from the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from tests.library.question_files import write_vqa
from tests.library.runner import run

CONFIG = """
trainer: {max_epochs: 2, accelerator: cpu, enable_progress_bar: false}
wandb: disabled
model:
  class_path: QuestionAnswering
  init_args:
    network:
      class_path: models.vqa.FromImages
      init_args:
        cells: {class_path: models.vqa.Patches, init_args: {size: 4}}
        answerer:
          class_path: models.vqa.TRAR
          init_args: {num_answers: 4, vocabulary_size: 20, in_chans: 49, dim: 8, feedforward_dim: 8, num_heads: 2,
            num_layers: 1, orders: [0, 1], word_dim: 4, pool_dim: 4, out_dim: 8}
data:
  class_path: VQA
  init_args: {root: data, batch_size: 2, fewest: 1, num_workers: 0, image_subsets: [train2014],
    train_transforms: [], eval_transforms: []}
"""


def test_commands_train_answer_and_write_features(tmp_path: Path) -> None:
    write_vqa(tmp_path / "data")
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    ended = run("fit", ["--config=tiny.yaml"], tmp_path)
    assert ended.code == 0, ended.output
    # Without the data set, the words and answers are those of the checkpoint.
    pictures = tmp_path / "pictures"
    (tmp_path / "data" / "train2014").rename(pictures)
    given = ["--ckpt_path=tiny/last", "pictures"]
    ended = run("predict", [*given, "--question", "What is on the moon?"], tmp_path)
    assert ended.code == 0, ended.output
    assert "the network does not know 'moon'" in ended.output
    rows = list(csv.DictReader((tmp_path / "runs/tiny/0/predict/predictions.csv").open()))
    assert len(rows) == 2
    assert {row[f"answer_{i}"] for row in rows for i in range(1, 5)} == {"cup", "2", "yes", "no"}
    assert len(list((tmp_path / "runs/tiny/0/predict").glob("*.png"))) == 2
    ended = run("predict", [*given, "--features=data/features/train2014"], tmp_path)
    assert ended.code == 0, ended.output
    array = np.load(tmp_path / "data/features/train2014/COCO_train2014_000000000007.png.npy")
    assert (array.shape, array.dtype) == ((4, 4, 49), np.float16)
    ended = run("predict", given, tmp_path)
    assert ended.code == 2
    assert "--question" in ended.output
