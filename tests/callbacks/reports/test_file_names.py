"""What pictures of single images are called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from callbacks.reports.file_names import file_names, fitting, picture_name


def named(*names: str) -> SimpleNamespace:
    return SimpleNamespace(source=lambda split: names, sample_name=lambda split, index: names[index])


def test_images_of_one_name_get_numbers_that_no_other_has() -> None:
    data = named("a/x.png", "b/x.jpg", "c/x_1.png", "c/y.z.png")
    assert file_names(data, "val") == ["x_0.png", "x_1_1.png", "x_1.png", "y.z.png"]
    assert picture_name(data, 1) == "0001_x.png"


def test_long_names_are_shortened_and_stay_apart(tmp_path: Path) -> None:
    long = ["a" * 251, "a" * 250 + "b", "中" * 100, "é" * 140]
    names = [picture_name(named(f"{name}.jpg"), 0) for name in long] + file_names(named(*long), "predict")
    assert len(set(names)) == 8
    for name in names:
        assert len(name.encode()) <= 240
        (tmp_path / name).write_bytes(b"")
    assert names[0].startswith("0000_aaa")
    assert names[2].startswith("0000_中中")
    assert fitting("short", ".png") == "short.png"
    assert fitting("\udcff", ".png") == "\\udcff.png"
