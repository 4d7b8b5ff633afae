"""Referring expressions: files, the head's boxes and losses, what counts as right, and what `predict` writes."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from rich.console import Console

from callbacks import StepSeed
from callbacks.reports.found_referents import FoundReferents
from datamodules import DataError, DigitReferences, Referring
from datamodules.digit_questions import CELL, scene
from datamodules.digit_references import expressions, ink_box
from datamodules.errors import OptionError
from lightning_modules import ReferringExpressions
from lightning_modules.referring import overlaps
from models.mistakes import Mistake
from models.vqa import FromImages, Located, Patches, referring_losses
from models.vqa import Referring as Head
from tests.library.reference_files import references, write_references

SIZES: dict[str, Any] = {"dim": 8, "feedforward_dim": 8, "num_heads": 2, "num_layers": 1, "dropout": 0.0}


def data_of(root: Path, **options: Any) -> Referring:
    given: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "train_transforms": [], "eval_transforms": []}
    return Referring(root, **given | options)


def head(in_chans: int = 49, **options: Any) -> Head:
    torch.manual_seed(0)
    return Head(8, in_chans, word_dim=4, pool_dim=4, orders=(0, 1), **SIZES | options)


def task_of(words: int = 8) -> ReferringExpressions:
    network = FromImages(Patches(4), head())
    network.answerer.embedding = torch.nn.Embedding(words, 4)
    return ReferringExpressions(network)


@pytest.mark.parametrize("suffix", [".p", ".json"])
def test_references_are_read_as_published(tmp_path: Path, suffix: str) -> None:
    data = data_of(write_references(tmp_path, suffix=suffix), references=f"refs(unc){suffix}")
    data.setup("fit")
    first, second = (data.source("train").load(i) for i in range(2))
    assert (first["question"], second["question"]) == ("top left", "bottom right")
    np.testing.assert_allclose(first["box"], [0, 0, 6 / 16, 4 / 12])
    np.testing.assert_allclose(second["box"], [8 / 16, 8 / 12, 1, 1])
    assert data.source("train").name(1).endswith("COCO_train2014_000000000002.png ('bottom right')")
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [2, 1, 1]
    assert data.vocabulary.words[3:] == ("top", "left", "bottom", "right")
    batch = next(iter(data.val_dataloader()))
    assert batch["box"].shape == (1, 4)
    assert batch["question"].tolist() == [[3, 4, *[0] * 8]]


class Called:
    """What a pickle must not do."""

    def __reduce__(self) -> Any:
        return print, ("called",)


def test_files_that_cannot_be_used_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[Any] = references()
    write_references(tmp_path, [*found, {"split": "train"}, found[0] | {"ann_id": 99}, found[0] | {"image_id": 2}])
    with pytest.raises(DataError, match=r"3 records cannot be used") as refused:
        data_of(tmp_path).setup("fit")
    assert "reference 4" in str(refused.value)
    assert "annotation 99 of image 1" in str(refused.value)
    write_references(tmp_path, found[:2])
    with pytest.raises(DataError, match=r"no reference is of the split 'val'. The option val says its name"):
        data_of(tmp_path).setup("fit")
    for content in (pickle.dumps([Called()]), pickle.dumps(found)[:50], pickle.dumps({"no": "list"})):
        (tmp_path / "refs(unc).p").write_bytes(content)
        with pytest.raises(DataError, match=r"refs\(unc\).p"):
            data_of(tmp_path).setup("fit")
    assert "called" not in capsys.readouterr().out
    with pytest.raises(OptionError, match="HorizontalFlip moves what is in an image"):
        data_of(tmp_path, train_transforms=[A.HorizontalFlip()])


def test_digits_are_meant_by_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXP_CACHE", str(tmp_path))
    data = DigitReferences(2, num_train=3, num_val=2)
    data.setup("fit")
    assert [len(data.source(split)) for split in ("train", "val")] == [9, 6]
    assert len(data.vocabulary) <= 19
    assert data.source("val").load(1)["question"].startswith("the digit that touches the ")
    drawn = scene(np.random.Generator(np.random.PCG64(0)))
    means = {text.split(" the ")[0]: which for text, which in expressions(drawn)}
    assert means["the digit that touches"] == 1
    assert np.abs(drawn.cells[1] - drawn.cells[0]).max() == 1
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[CELL + 2 : CELL + 7, 3:5] = 255
    assert ink_box(pixels, np.array([1, 0])) == [3, CELL + 2, 2, 5]


def test_boxes_are_cells_until_they_are_refined() -> None:
    network = head().eval()
    torch.nn.init.zeros_(network.refine[2].weight)
    torch.nn.init.zeros_(network.refine[2].bias)
    features = torch.randn(2, 3, 4, 49)
    features[1, :, 2:] = 0
    questions = torch.tensor([[3, 4, 0], [5, 0, 0]])
    located = network(questions, features)
    # Row 1, column 2 of 3x4 cells.
    torch.testing.assert_close(located.boxes[0, 6], torch.tensor([2 / 4, 1 / 3, 3 / 4, 2 / 3]))
    # Cells without an image do not win.
    assert not (located.logits[1].unflatten(0, (3, 4))[:, 2:] > torch.finfo(torch.float32).min).any()
    winner = located.logits[0].argmax()
    torch.testing.assert_close(located.best[0], located.boxes[0, winner])
    torch.nn.init.constant_(network.refine[2].bias, 0.5)
    moved = network(questions, features).boxes[0, 6]
    centre, side = torch.tensor([3.0 / 4, 2.0 / 3]), torch.tensor(0.5).exp() / torch.tensor([4, 3])
    torch.testing.assert_close(moved, torch.cat([centre - side / 2, centre + side / 2]))
    with pytest.raises(Mistake, match=r"regions, .* have no places"):
        network(questions, torch.randn(2, 5, 49))


def test_losses_want_the_cell_of_the_middle_and_its_box() -> None:
    true = torch.tensor([[0.5, 0.25, 0.75, 0.75]])
    # The middle, (0.625, 0.5), is in row 1 and column 2 of 2x4 cells.
    logits = torch.full((1, 8), -30.0)
    logits[0, 6] = 30
    boxes = torch.rand(1, 8, 4)
    boxes[0, 6] = true[0]
    assert all(loss < 1e-6 for loss in referring_losses(Located(logits, boxes, (2, 4)), true).values())
    boxes[0, 6, 2] = 1.0
    losses = referring_losses(Located(logits.roll(1, 1), boxes, (2, 4)), true)
    torch.testing.assert_close(losses["l1"], torch.tensor(0.25))
    torch.testing.assert_close(losses["giou"], torch.tensor(0.5))
    torch.testing.assert_close(losses["cell"], torch.tensor(60.0))
    torch.testing.assert_close(overlaps(boxes[:, 6], true), torch.tensor([0.5]))


def test_it_trains_and_predicts(tmp_path: Path) -> None:
    data, task = data_of(write_references(tmp_path)), task_of()
    given: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=2, callbacks=[StepSeed(0)], **given, **quiet)
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    trainer.fit(task, data)
    parts = {name.split(".")[1] for name, value in task.network.named_parameters() if (value != before[name]).any()}
    assert parts >= {"embedding", "lstm", "adapter", "encoder", "decoder", "word_pool", "norm", "score", "refine"}
    found: Any = task.findings
    assert found.iou.shape == (1,)
    assert trainer.callback_metrics["val/accuracy"] == float(found.iou[0] > 0.5)
    torch.testing.assert_close(trainer.callback_metrics["val/mean_iou"].float(), found.iou[0])
    # Words are kept with the weights.
    restored = data_of(tmp_path)
    restored.load_state_dict(data.state_dict())
    assert restored.vocabulary.words == data.vocabulary.words
    assert restored.unknown_words("top of the left") == ["of", "the"]

    report = FoundReferents("top left")
    data.predict_paths = [tmp_path / "images"]
    outputs = Trainer(callbacks=[report], **given, **quiet).predict(task, data)
    folder = tmp_path / "found"
    folder.mkdir()
    written = report.finish([*(outputs or [])], folder, Console(quiet=True))
    rows = list(csv.reader((folder / "predictions.csv").read_text().splitlines()))
    assert len(rows) == len(written) == 4
    assert 0 <= float(rows[1][2]) <= float(rows[1][4]) <= 16


def test_too_few_words_are_refused(tmp_path: Path) -> None:
    data, task = data_of(write_references(tmp_path)), task_of(words=5)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(Mistake, match=r"vectors of 5 words but the data has 7 words: set its vocabulary_size to 7"):
        trainer.fit(task, data)
