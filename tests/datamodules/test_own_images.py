"""Photographs of one's own: class folders with and without splits, and tables of every usual form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules import DataError, OwnImages
from datamodules.errors import OptionError
from datamodules.pixels import Pixels
from tests.library.class_folders import write_class_folders

COUNT = 6


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`train/kind 0` to `kind 2`, six images each."""
    write_class_folders(tmp_path, classes=3, images=COUNT, size=12)
    return tmp_path


def rows(folders: Path, within: str = "train") -> list[tuple[str, str]]:
    return [
        (f"{within}/kind {label}/{number}.png".lstrip("/"), f"kind {label}")
        for label in range(3)
        for number in range(COUNT)
    ]


def opened(root: Path, **options: Any) -> OwnImages:
    data = OwnImages(root, **options)
    data.setup("fit")
    return data


def found(data: OwnImages, split: str) -> list[tuple[str, str]]:
    source: Any = data.source(split)
    return [(Path(source.name(i)).parent.name, data.class_names[source.labels[i]]) for i in range(len(source))]


def test_class_folders_with_and_without_splits(folders: Path) -> None:
    data = opened(folders)
    assert (data.num_classes, len(data.source("train")), len(data.source("val"))) == (3, 14, 4)
    assert data.described() == (
        f"{folders}: class folders, 3 classes, 14 train, 4 val images, val held out from train (layout: folders)"
    )
    # The same images, one level up.
    assert opened(folders / "train").num_classes == 3
    (folders / "valid").symlink_to(folders / "train" / "kind 1" / "..", target_is_directory=True)
    with pytest.raises(DataError, match=r"are the same folder"):
        opened(folders)
    (folders / "valid").unlink()
    (folders / "valid" / "kind 1").mkdir(parents=True)
    (folders / "valid" / "kind 1" / "0.png").write_bytes((folders / "train" / "kind 1" / "0.png").read_bytes())
    data = opened(folders)
    assert (len(data.source("train")), found(data, "val")) == (18, [("kind 1", "kind 1")])
    assert "held out" not in data.described()


@pytest.mark.parametrize(
    ("head", "separator"), [("path,label", ","), ("File;Class", ";"), ("image_path\tcategory", "\t"), ("", ",")]
)
def test_a_table_of_images(folders: Path, head: str, separator: str) -> None:
    lines = [head] * bool(head) + [separator.join(row) for row in rows(folders)]
    # As spreadsheets save it.
    (folders / "labels.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    # Where a folder has both, its own split into training and validation is older than any table.
    assert "(layout: folders)" in opened(folders).described()
    for data in (opened(folders / "labels.csv"), opened(folders, layout="csv")):
        assert "(layout: csv)" in data.described()
        assert data.class_names == ["kind 0", "kind 1", "kind 2"]
        pairs = found(data, "train") + found(data, "val")
        assert len(pairs) == 18
        assert all(folder == name for folder, name in pairs)
        assert data.source("train").load(0)["image"].size() == (12, 12)


def test_splits_in_a_column_and_in_files(folders: Path) -> None:
    splits = ["train", "Valid", "test"]
    listed = [f"{path},{label},{splits[i % 3]}" for i, (path, label) in enumerate(rows(folders, ""))]
    table = folders / "train" / "all.csv"
    table.write_text("path,label,split\n" + "\n".join(listed))
    data = opened(table)
    assert [len(data.source(split)) for split in ("train", "val", "test")] == [6, 6, 6]
    other = folders / "tables"
    other.mkdir()
    (other / "train.csv").write_text("id,label\n" + "\n".join(f"{p},{k}" for p, k in rows(folders, "")[::2]))
    (other / "val.csv").write_text("id,label\n" + "\n".join(f"{p},{k}" for p, k in rows(folders, "")[1::2]))
    with pytest.raises(DataError, match=r"neither class folders nor a table. train.csv has the columns id, label"):
        opened(other)
    (other / "train.csv").write_text((other / "train.csv").read_text().replace("id,", "path,"))
    (other / "val.csv").write_text((other / "val.csv").read_text().replace("id,", "path,"))
    data = opened(other, images=folders / "train")
    assert [len(data.source(split)) for split in ("train", "val")] == [9, 9]


def test_what_is_wrong_with_a_table_is_said_by_line(folders: Path) -> None:
    good = [f"{path},{label}" for path, label in rows(folders)]
    bad = ["train/kind 0/9.png,kind 0", ",kind 0", "train/kind 1/1.png,", "../x.png,kind 0", good[0], "a,b,c"]
    table = folders / "labels.csv"
    table.write_text("\n".join(["path,label", *good, *bad]))
    reasons = [
        r"labels.csv: 6 rows cannot be used",
        r"line 20: .*train/kind 0/9.png is missing",
        "line 21: it has no path",
        "line 22: it has no label",
        "line 23: its file ../x.png is not in .*: name the folder by images",
        "line 24: train/kind 0/0.png is in line 2, too",
        "line 25: it has 3 cells, and the first line has 2",
    ]
    with pytest.raises(DataError, match=r"(?s)" + ".*".join(reasons)):
        opened(table)
    with pytest.warns(UserWarning, match=r"6 rows cannot be used and are left out"):
        data = opened(table, on_bad_sample="skip")
    assert len(data.source("train")) + len(data.source("val")) == 18
    table.write_text("name,kind\n" + good[0])
    with pytest.raises(DataError, match=r"has no column path, but name, kind. Name it by path_column"):
        opened(table)
    with pytest.raises(DataError, match=r"has no column species, but name, kind. Name it by label_column"):
        opened(table, path_column="name", label_column="species")


def test_numbers_are_in_their_order(folders: Path) -> None:
    names = {"kind 0": "10", "kind 1": "9", "kind 2": "1"}
    (folders / "train.csv").write_text("path,label\n" + "\n".join(f"{p},{names[k]}" for p, k in rows(folders)))
    assert opened(folders, layout="csv").class_names == ["1", "9", "10"]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist. Wanted are .*nowhere/train/<class>/<image>"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds neither class folders nor a table"):
        opened(tmp_path)
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("path,label\n")
    with pytest.raises(DataError, match=r"several tables \(one.csv, two.csv\): give one of them as root"):
        opened(tmp_path)


def test_one_key_for_the_size() -> None:
    with pytest.raises(OptionError, match=r"size=4"):
        OwnImages("nowhere", size=4)
    for size, expected in ((None, 224), (64, 64)):
        assert OwnImages("nowhere", size=size).example()["image"].shape[-2:] == (expected, expected)
    data = OwnImages("nowhere", size=64)
    data.adopt(Pixels((0.5,) * 3, (0.5,) * 3, size=(240, 240)))
    assert data.example()["image"].shape[-1] == 64
