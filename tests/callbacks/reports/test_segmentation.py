"""Pictures and files of a segmenter's evaluation, and what of them is true."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from callbacks.reports.segmentation import SegmentedImages, file_names, panels, write_labels
from drawing.figures import save
from drawing.segmentation import (
    MOST_BARS,
    VOID,
    blended,
    class_bars,
    coloured,
    miou_curve,
    overlay,
    panel_sheet,
)
from lightning_modules import Segmentation
from tests.library.reports import placed, trainer_with
from tests.library.segmentation import Answers, OneByOne, Scenes

PICTURES = ["class_iou.png", "confusion_matrix.png", "miou_curve.png", "reliability.png", "segmentation.png"]


def palette() -> np.ndarray:
    return np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def run(folder: Path, command: str, module: Segmentation) -> Scenes:
    data = Scenes()
    trainer = trainer_with(placed(SegmentedImages(images=3), folder), folder=folder, max_epochs=1)
    if command == "fit":
        trainer.fit(module, data)
    else:
        getattr(trainer, command)(module, data, verbose=False)
    return data


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_evaluation_leaves_pictures_and_files(command: str, tmp_path: Path) -> None:
    module = Segmentation(OneByOne(), write_labels=True)
    data = run(tmp_path, command, module)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == PICTURES
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [*data.class_names, "mean"]
    assert module.findings is not None
    assert float(rows[-1]["iou"]) == pytest.approx(module.findings.exits[-1].miou, abs=1e-4)
    # Three images of one city and two of another, some of one name.
    written = {path.name: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (tmp_path / "labels").iterdir()}
    assert sorted(written) == ["image0_0.png", "image0_3.png", "image1_1.png", "image1_4.png", "image2.png"]
    predicted = data.images[4].argmax(0).numpy()
    ids = written["image1_4.png"]
    assert ids.dtype == np.uint8
    assert ids.shape == predicted.shape
    assert set(np.unique(ids)) <= set(data.label_ids)
    assert (ids == np.array(data.label_ids)[predicted]).mean() > 0.5


def test_fit_draws_and_writes_at_its_end(tmp_path: Path) -> None:
    run(tmp_path, "fit", Segmentation(Answers(1), write_labels=True))
    # One exit has no curve, and nothing goes on where it is not sure.
    made = {name for name in PICTURES if name not in ("miou_curve.png", "reliability.png")}
    # What is predicted on the way is not written.
    assert {p.name for p in tmp_path.iterdir()} == made | {"classes.csv"}


def test_without_a_place_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = SegmentedImages()
    trainer_with(report, folder=tmp_path).validate(Segmentation(Answers()), Scenes(), verbose=False)
    assert report._shown.things() == []
    assert not list(tmp_path.glob("*.png"))


def test_label_files_are_exact(tmp_path: Path) -> None:
    predicted = np.array([[0, 1], [2, 2]], np.uint8)
    path = write_labels(predicted, [7, 8, 33], tmp_path / "there" / "a.png")
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).tolist() == [[7, 8], [33, 33]]
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"Is a directory: .*folder\.png"):
        write_labels(predicted, [7, 8, 33], tmp_path / "folder.png")


def test_files_are_named_as_the_images() -> None:
    assert file_names(Scenes(2), "val") == ["image0.png", "image1.png"]


def test_colours_are_the_palette() -> None:
    labels = np.array([[0, 1], [2, VOID]], np.uint8)
    assert coloured(labels, palette()).tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]]
    image = np.full((4, 4, 3), 100, np.uint8)
    mixed = blended(image, labels, palette())
    assert mixed[0, 0].tolist() == mixed[1, 1].tolist() == [185, 45, 45]
    assert mixed[3, 3].tolist() == [100, 100, 100]


def test_rows_of_panels() -> None:
    data = Scenes(1)
    image, label = data.raw_image("val", 0), data.labels[0].numpy()
    plain = panels(image, "x", label, Segmentation(Answers()).look(data.images[0], label.shape), palette())
    assert [[panel is not None for panel in row] for row in plain] == [[True] * 4, [False, True, True, True]]
    looks = Segmentation(OneByOne()).look(data.images[0], label.shape)
    rows = panels(image, "x", label, looks, palette())
    assert [panel is not None for panel in rows[2]] == [False, False, False, True]
    assert rows[2][3] is not None
    computed = rows[2][3].pixels.mean()
    assert rows[2][3].caption == f"computed: {computed:.1%}"
    assert rows[0][3] is not None
    right = (looks[1].predicted.numpy() == label)[label != VOID].mean()
    assert rows[0][3].caption == f"exit 1: {right:.1%} of the pixels right"


def test_figures_hold_what_they_are_given(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(80)]
    iou = np.linspace(0, 1, 80)
    iou[79] = np.nan
    bars = class_bars(names, {"exit 0": iou / 2, "exit 1": iou})
    shown = [text.get_text() for text in bars.axes[0].get_yticklabels()]
    assert len(shown) == MOST_BARS
    assert (shown[0], shown[-1]) == ("class 78", "class 0")
    curve = miou_curve([1e9, 3e9], [0.4, 0.6])
    assert curve.axes[0].lines[0].get_xydata().tolist() == [[1, 0.4], [3, 0.6]]
    assert "G multiply-adds" in curve.axes[0].get_xlabel()
    labels = np.zeros((8, 16), np.uint8)
    labels[:, :4] = 1
    picture = overlay(np.zeros((8, 16, 3), np.uint8), labels, palette(), ["road", "sky", "car"], "x")
    assert [text.get_text() for text in picture.legends[0].get_texts()] == ["road 75.0%", "sky 25.0%"]
    rows = panels(np.zeros((8, 16, 3), np.uint8), "x", labels, [], palette())
    sheet = panel_sheet(rows, palette(), ["road", "sky", "car"], [0, 1])
    for i, figure in enumerate((bars, curve, picture, sheet)):
        assert save(figure, tmp_path / f"{i}.png").stat().st_size > 5000
