"""What a COCO data set with bad records does: one report that names file and record, or a counted, bounded skip."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import DataError, json_records
from datamodules.json_records import records
from tests.library.coco_files import CocoFiles


def change(where: str, **fields: Any) -> Callable[[CocoFiles], None]:
    """Changes the second training record of a kind; None removes a field."""

    def apply(coco: CocoFiles) -> None:
        record = coco.records["train"][where][1]
        record |= fields
        for name in [name for name, value in fields.items() if value is None]:
            del record[name]

    return apply


def again(where: str) -> Callable[[CocoFiles], None]:
    """Repeats the second training record of a kind."""
    return lambda coco: coco.records["train"][where].append(coco.records["train"][where][1])


def remove_file(coco: CocoFiles) -> None:
    (coco.root / "train2017/11.png").unlink()


FAULTS: dict[str, tuple[Callable[[CocoFiles], None], str, str]] = {
    "missing file": (remove_file, "image 11", r"train2017/11.png is missing"),
    "no size": (change("images", height=None), "images record 11 .number 1.", "has no 'height'"),
    "size 0": (change("images", width=0), "images record 11 .number 1.", "11.png has the size 0x60"),
    "image id twice": (again("images"), r"image 11 \(11.png\)", "its id belongs to another image, too"),
    "annotation id twice": (again("annotations"), "annotation 101 of image 10", "its id belongs to another annotation"),
    "unknown image": (change("annotations", image_id=77), "annotation 101 of image 77", "there is no such image"),
    "unknown category": (change("annotations", category_id=4), "annotation 101 of image 10", "category 4 is unknown"),
    "empty box": (change("annotations", bbox=[1, 2, 0, 3]), "annotation 101 of image 10", r"\[1, 2, 0, 3\] is empty"),
    "inverted box": (change("annotations", bbox=[9, 2, -3, 3]), "annotation 101 of image 10", "is inverted"),
    "box outside": (
        change("annotations", bbox=[60, 2, 9, 3]),
        "annotation 101 of image 10",
        "is empty within .* 60x40",
    ),
    "box of NaN": (change("annotations", bbox=[float("nan"), 2, 9, 3]), "annotation 101 of image 10", "is not finite"),
    "three numbers": (change("annotations", bbox=[1, 2, 3]), "annotations record 101", "bbox has 3 numbers"),
    "no box": (change("annotations", bbox=None), "annotations record 101", "has no 'bbox'"),
    "two points": (
        change("annotations", segmentation=[[1, 2, 3, 4]]),
        "annotations record 101",
        "polygon of 4 numbers",
    ),
    "a word in a polygon": (
        change("annotations", segmentation=[[0, 0, 9, 0, 9, 9], [1, 2, 3, "x", 5, 6]]),
        "annotations record 101",
        "a polygon holds 'x', which is no number",
    ),
    "a line": (change("annotations", segmentation=[[1, 1, 2, 2, 3, 3]]), "annotation 101 of image 10", "have no area"),
    "an eight": (
        change("annotations", segmentation=[[0, 0, 4, 4, 4, 0, 0, 4]]),
        "annotation 101 of image 10",
        "self-crossing",
    ),
    "mask of another size": (
        change("annotations", segmentation={"size": [3, 2], "counts": [6]}),
        "annotation 101 of image 10",
        "run-length mask is not 60x40",
    ),
    "short run lengths": (
        change("annotations", segmentation={"size": [40, 60], "counts": [6]}),
        "annotations record 101",
        "mask of 6 pixels for 60x40",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_record_is_named_or_skipped(coco: CocoFiles, fault: str) -> None:
    spoil, record, reason = FAULTS[fault]
    spoil(coco)
    with pytest.raises(DataError, match=rf"(?s)train2017.json: .*{record}.*{reason}.*on_bad_sample: skip"):
        coco.data().setup("fit")
    data = coco.data(on_bad_sample="skip")
    with pytest.warns(UserWarning, match=rf"(?s)left out.*{record}.*{reason}"):
        data.setup("fit")
    assert all("train2017.json" in name for name in data.bad_samples)
    left = len(data.source("train"))
    good = {"missing file": 2, "no size": 2, "size 0": 2}.get(fault, 3)
    assert left == good
    truth = data.ground_truth("train")
    twice = fault in ("image id twice", "annotation id twice")
    assert (len(truth["images"]), len(truth["annotations"])) == (good, 3 if twice else 2)
    for sample in data.train_dataloader():
        assert len(sample["image"]) == 2
    strict = coco.data(on_bad_sample="skip", max_bad_samples=0)
    with pytest.raises(DataError, match=r"more than max_bad_samples=0"):
        strict.setup("fit")


def test_many_bad_records_are_counted_and_the_first_named(coco: CocoFiles) -> None:
    for _ in range(30):
        coco.object(10, [1, 1, 0, 0])
    with pytest.raises(DataError, match="30 records cannot be used") as caught:
        coco.data().setup("fit")
    assert str(caught.value).count("is empty") == 10
    assert "and 20 more" in str(caught.value)


def test_a_box_over_the_edge_is_cut_there_with_a_word(coco: CocoFiles) -> None:
    coco.object(10, [50, 30, 20, 10.4])
    data = coco.data()
    with pytest.warns(UserWarning, match=r"1 boxes reach more than a pixel over .* annotation 103 of image 10"):
        data.setup("fit")
    assert data.source("train").load(0)["target"]["boxes"][-1].tolist() == [50, 30, 60, 40]
    assert data.ground_truth("train")["annotations"][2]["bbox"] == [50, 30, 20, 10.4]


def test_an_image_of_another_size_than_its_record_is_a_bad_sample(coco: CocoFiles) -> None:
    coco.records["train"]["images"][0] |= {"height": 60, "width": 40}
    coco.records["train"]["annotations"] = []
    with pytest.raises(DataError, match=r"10.png .*the image has 60x40 pixels and its annotations are for 40x60"):
        list(coco.data(batch_size=3).train_dataloader())


def test_categories_of_both_splits_must_agree(coco: CocoFiles) -> None:
    coco.records["val"]["categories"][0]["name"] = "tram"
    with pytest.raises(DataError, match=r"differ in their categories.*tram"):
        coco.data().setup("fit")


@pytest.mark.parametrize("number", [-1, 10**12])
def test_ids_that_can_be_no_labels_are_one_error(coco: CocoFiles, number: int) -> None:
    for content in coco.records.values():
        content["categories"][0]["id"] = number
    with pytest.raises(DataError, match=rf"{number}.* labels: coco takes ids as labels.*Set labels: contiguous"):
        coco.data(labels="coco").setup("fit")
    coco.records["train"]["annotations"][2]["category_id"] = number
    data = coco.data()
    data.setup("fit")
    assert number in data.category_ids


def test_an_image_listed_under_two_ids_is_said(coco: CocoFiles) -> None:
    coco.records["train"]["images"].append(coco.records["train"]["images"][1] | {"id": 99})
    data = coco.data()
    with pytest.warns(
        UserWarning, match=r"1 images have a file that another image has, too.*the first file is '11.png'"
    ):
        data.setup("fit")
    assert data.image_ids("train").tolist() == [10, 11, 12, 99]


@pytest.mark.parametrize(
    "name", ["11.png/11.png", "n" * 300 + ".png", "a\0b.png", "\ud800.png", "", 7, "../gone/11.png"]
)
def test_a_file_name_that_is_none_is_a_bad_record(coco: CocoFiles, name: object) -> None:
    coco.records["train"]["images"][1]["file_name"] = name
    with pytest.raises(DataError, match=r"(?s)train2017.json: .* 11.*on_bad_sample: skip") as caught:
        coco.data().setup("fit")
    str(caught.value).encode()
    data = coco.data(on_bad_sample="skip")
    with pytest.warns(UserWarning, match="left out"):
        data.setup("fit")
    assert data.image_ids("train").tolist() == [10, 12]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("annotations/instances_val2017.json", "val_annotations and val_images"),
        ("val2017", "Name it by val_images"),
    ],
)
def test_missing_files_are_named(coco: CocoFiles, missing: str, message: str) -> None:
    data = coco.data()
    (coco.root / missing).rename(coco.root / "away")
    with pytest.raises(DataError, match=rf"{missing}.*{message}"):
        data.setup("fit")


def test_an_empty_validation_set_is_no_validation(coco: CocoFiles) -> None:
    coco.records["val"] |= {"images": [], "annotations": []}
    data = coco.data()
    with pytest.warns(UserWarning, match="has no images: there is no val split"):
        assert data.val_dataloader() == []
    coco.records["train"] |= {"images": [], "annotations": []}
    with pytest.warns(UserWarning, match="no train split"), pytest.raises(DataError, match="no images to train on"):
        coco.data().setup("fit")


def test_an_image_of_crowds_only_has_no_target(coco: CocoFiles) -> None:
    image = coco.image()
    coco.object(image, [1, 1, 9, 9], iscrowd=1, segmentation={"size": [40, 60], "counts": [40, 50, 2310]})
    batch = next(iter(coco.data(batch_size=4).train_dataloader()))
    found = next(one for one in batch["target"] if one["image_id"] == image)
    assert found["boxes"].shape == (0, 4)
    assert found["masks"].shape == (0, 40, 60)


def test_objects_of_one_pixel_and_three_hundred_of_them(coco: CocoFiles) -> None:
    image = coco.image(height=20, width=30)
    for number in range(300):
        coco.object(image, [number % 30, number // 30, 1, 1], category_id=3)
    batch = next(iter(coco.data(batch_size=4).train_dataloader()))
    found = next(one for one in batch["target"] if one["image_id"] == image)
    assert found["masks"].sum((1, 2)).tolist() == [1] * 300
    assert torch.equal(found["masks"].nonzero()[:, 1:].flip(1).float(), found["boxes"][:, :2])


def test_sizes_in_a_batch_may_differ_widely(coco: CocoFiles) -> None:
    coco.image(height=1, width=1)
    coco.image(height=700, width=5)
    batch = next(iter(coco.data(batch_size=5).train_dataloader()))
    assert {tuple(image.shape[1:]) for image in batch["image"]} == {(1, 1), (700, 5), (40, 60), (60, 30)}


CONTENT = {
    "info": {"a": [1, {"b": "]}"}]},
    "images": [{"id": 1, "x": 1.25e-3, "name": 'é"\\,'}, {"id": 22}],
    "empty": [],
    "annotations": [],
    "number": 12345,
    "categories": [[1, 2], 3],
}


@pytest.mark.parametrize("chunk", [1, 3, 17, 4096])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_reader_finds_what_json_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_records, "CHUNK", chunk)
    file = tmp_path / "file.json"
    file.write_text(json.dumps(CONTENT, indent=indent, ensure_ascii=False), encoding="utf-8")
    sections = frozenset({"images", "annotations", "categories"})
    found = list(records(file, sections))
    assert found == [(key, one) for key in ("images", "annotations", "categories") for one in CONTENT[key]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "is no JSON object"),
        ('{"images": [{"id": 1}, {"id": ', "is damaged or cut off"),
        ('{"images": [{"id": 1}', "is damaged or cut off: an array does not end"),
        ('{"images": {"id": 1}}', "has no array under 'images'"),
        ('{"images" [1]}', "has no ':' after"),
        ("", "is no JSON object"),
        ("{}", "has no annotations, no categories, no images"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "images": []}', "has 'images' twice"),
        ('{"images": [], "annotations": [], "categories": []} {}', "goes on after its end"),
        ('{"images": ' + "[" * 100_000, "holds lists within lists without end"),
        ('{"info": {"a": ' * 100_000, "holds lists within lists without end"),
        ('{"images": [' + "9" * 5000 + "]}", "holds a number of thousands of digits"),
        ('{"images": [], images: []}', "is damaged or cut off: a key in quotes is missing"),
    ],
)
def test_a_damaged_file_is_one_error(coco: CocoFiles, text: str, reason: str) -> None:
    data = coco.data()
    (coco.root / "annotations/instances_train2017.json").write_text(text)
    with pytest.raises(DataError, match=rf"instances_train2017.json {reason}"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("outline", "crosses"),
    [
        ([2, 2, 20, 2, 20, 20, 2, 20], False),
        ([20, 2, 2, 2, 2, 20, 20, 20], False),
        # A bow tie with halves of different size, and a line that goes around twice.
        ([2, 2, 20, 20, 20, 5, 2, 20], True),
        ([2, 2, 20, 2, 20, 20, 2, 20, 5, 5, 15, 5, 15, 15, 5, 15], True),
        # A point twice in a row, and a spike.
        ([2, 2, 2, 2, 20, 2, 20, 20, 2, 20], False),
        ([2, 2, 20, 2, 25, 2, 20, 2, 20, 20, 2, 20], False),
    ],
)
def test_outlines_that_cross_themselves_are_reported(tmp_path: Path, outline: list[float], crosses: bool) -> None:
    files = CocoFiles(tmp_path)
    for split in ("train", "val"):
        image = files.image(split)
        files.object(image, [2, 2, 18, 18], split)
    files.object(10, [2, 2, 18, 18], segmentation=[outline])
    data = files.data()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup("fit")
    said = [str(each.message) for each in caught if "cross themselves" in str(each.message)]
    assert len(said) == crosses
    assert not crosses or "1 outlines" in said[0]
    assert not crosses or "annotation 101 of image 10" in said[0]
    # They train all the same.
    assert len(data.source("train").load(0)["target"]["boxes"]) == 2


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret.png", "sub/../../secret.png"])
def test_files_outside_of_the_folder_are_not_read(coco: CocoFiles, name: str) -> None:
    (coco.root / "train2017").mkdir(exist_ok=True)
    (coco.root / "secret.png").write_bytes((coco.root / "train2017/10.png").read_bytes())
    coco.records["train"]["images"][0]["file_name"] = name
    with pytest.raises(DataError, match=rf"image 10: its file {name} is not in .*train2017"):
        coco.data().setup("fit")
    with pytest.warns(UserWarning, match="is not in"):
        assert len(coco.data(on_bad_sample="skip").source("train")) == 2


def test_categories_without_objects_are_told_before_a_training(coco: CocoFiles) -> None:
    coco.object(11, [1, 1, 9, 9], category_id=5)
    coco.object(12, [1, 1, 9, 9], category_id=7, iscrowd=1)
    with pytest.warns(UserWarning, match="classes") as told:
        coco.data().setup("fit")
    assert [str(each.message) for each in told] == [
        "2 of 3 classes are in one training image only: car, train.",
        "2 of 3 classes have no object in the val split and cannot be evaluated: car, train.",
    ]
    with pytest.warns(UserWarning, match="1 of 3 classes have no object in the train split .*: train"):
        coco.data(limit=1, labels="coco", keep_empty=False).setup("fit")
