"""A COCO file damaged anywhere is one error, or gives what its good records give: nothing half, nothing unsaid."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from datamodules import DataError
from datamodules.coco_annotations import Annotations
from datamodules.coco_compile import compile_annotations
from datamodules.run_lengths import coded_pixels

HEIGHT, WIDTH = 24, 32
FAR = {"far": [-1e300, 1e300, 1e9, -1e9], "beyond": [10**400, 2**63, -(2**64)], "none": [float("nan"), float("inf")]}
JUNK = [
    None,
    True,
    "x",
    "",
    " 7",
    "7.0",
    [],
    {},
    [[]],
    [1, [2]],
    {"id": 1},
    0.5,
    *FAR["far"],
    *FAR["beyond"],
    *FAR["none"],
]


def valid() -> dict[str, Any]:
    """Outlines of every kind, a crowd, and people with keypoints."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[3:9, 4:12] = 1
    code = {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(mask)["counts"].decode()}
    runs = {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}
    square = [[4, 3, 12.5, 3, 12, 9, 4, 9.25]]
    categories = [{"id": 1, "name": "person", "keypoints": ["nose", "left eye", "right eye"]}, {"id": 5, "name": "cat"}]
    annotations = [
        {"image_id": image, "category_id": category, "bbox": [4, 3, 8.5, 6], "segmentation": outline, "iscrowd": crowd}
        for image, category, outline, crowd in (
            (10, 5, square, 0),
            (10, 5, code, 0),
            (11, 1, square, 0),
            (11, 5, runs, 1),
            (12, 1, code, 0),
            (12, 1, square, 0),
        )
    ]
    for number, record in enumerate(annotations):
        record |= {"id": 100 + number, "area": 51.5}
        if record["category_id"] == 1:
            record["keypoints"] = [5, 5, 2, 6.5, 4, 1, 0, 0, 0]
    images = [
        {"id": n, "file_name": f"a/{n}.jpg", "height": HEIGHT, "width": WIDTH, "license": 3} for n in (10, 11, 12)
    ]
    document = {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": categories}
    return json.loads(json.dumps(document))


def content(document: Any, outlines: bool = True) -> tuple[str, int]:
    """Everything that is read of a document, as text, and how many of its records were left out."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXP_CACHE", f"{folder}/cache")
        patch.setattr("os.fsync", lambda _: None)
        (Path(folder) / "a.json").write_bytes(text)
        annotations = Annotations(Path(folder) / "a.json", outlines)
        drawn = []
        for image in range(len(annotations)):
            annotations.objects(image)
            for row in range(*annotations.rows(image).indices(10**6)) if outlines else ():
                top, left, mask = annotations.patch(row, *annotations.size(image))
                drawn.append([top, left, mask.tolist()])
        truth = annotations.ground_truth(np.arange(len(annotations)), outlines)
        return json.dumps([truth, drawn, annotations.file_names()]), annotations.num_problems


def without(document: dict[str, Any], section: str, number: int) -> dict[str, Any]:
    """A document without a record and what belongs to it."""
    left = copy.deepcopy(document)
    gone = left[section].pop(number)
    key = {"images": "image_id", "categories": "category_id"}.get(section)
    if key:
        left["annotations"] = [one for one in left["annotations"] if one[key] != gone["id"]]
    return left


@cache
def good(section: str = "", number: int = 0) -> str:
    """Content of the valid document, or of what is left of it without a record."""
    return content(without(valid(), section, number) if section else valid())[0]


def one_line(error: DataError) -> None:
    assert str(error).isprintable()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to everything in a document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


PLACES = [path for path in places(valid()) if len(path) > 2 and path[0] != "info"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(PLACES), st.sampled_from([*JUNK, "gone"]))
def test_one_damaged_record_leaves_the_others_whole(path: tuple[Any, ...], junk: Any) -> None:
    document = valid()
    *way, last = path
    holder = document
    for key in way:
        holder = holder[key]
    # What another value means is not damage.
    assume(not (last == "iscrowd" and junk is True))
    assume(not (last == "id" and junk in (1e9, -1e9)))
    assume(not (last == "name" and isinstance(junk, str | int | float) and junk is not True))
    assume(not (last == "file_name" and isinstance(junk, str)))
    assume(not (path[0] == "categories" and "keypoints" in path))
    assume(not (way and way[-1] in ("bbox", "keypoints") and junk == 0.5))
    assume(not (last == "area" and junk == 0.5))
    assume(not (isinstance(holder, list) and isinstance(last, int) and junk == 0.5 and len(way) > 3))
    if junk == "gone":
        del holder[last]
    else:
        holder[last] = junk
    section, number = path[:2]
    expected = [good(), good(section, number)]
    if last in ("area", "iscrowd", "keypoints", "supercategory") and junk in (None, "gone", [], "", {}, False):
        whole = valid()
        del whole[section][number][last]
        expected.append(content(whole)[0])
    try:
        found, problems = content(document)
    except DataError as error:
        one_line(error)
        return
    assert found in expected
    # What is missing is said.
    assert (found == expected[1]) == (problems > 0)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0), st.integers(0, 255), st.sampled_from(["cut", "byte", "insert", "bit", "twice"]))
def test_damaged_text_is_one_error_or_readable(place: int, byte: int, damage: str) -> None:
    text = json.dumps(valid()).encode()
    place %= len(text)
    before, after = text[:place], text[place:]
    damaged = {
        "cut": before,
        "byte": before + bytes([byte]) + after[1:],
        "insert": before + bytes([byte]) + after,
        "bit": before + bytes([after[0] ^ 1 << byte % 8]) + after[1:],
        "twice": before + after[:100] + after,
    }[damage]
    try:
        content(damaged)
    except DataError as error:
        one_line(error)
    else:
        assert damage != "cut"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_and_other_encodings_are_read(encoding: str) -> None:
    assert content(json.dumps(valid()).encode(encoding)) == content(valid())


def test_whole_numbers_may_be_written_as_floats_or_text() -> None:
    for write in (float, str):
        document = valid()
        for section in ("images", "annotations", "categories"):
            for record in document[section]:
                for field in ("id", "image_id", "category_id", "height", "iscrowd"):
                    if field in record:
                        record[field] = write(record[field])
        assert content(document) == content(valid())


def test_the_first_of_bad_keypoint_records_refuses_no_good_one() -> None:
    for named in (True, False):
        document = valid()
        if not named:
            del document["categories"][0]["keypoints"]
        pruned = without(document, "annotations", 2)
        del document["annotations"][2]["keypoints"][:3]
        assert content(document) == (content(pruned)[0], 1)


def test_images_that_share_an_id_are_nobodys() -> None:
    document = valid()
    document["images"][0]["id"] = 12
    expected = without(without(valid(), "images", 2), "images", 0)
    found, problems = content(document)
    assert found == content(expected)[0]
    # Two images, and four objects of theirs.
    assert problems == 2 + 4


def test_an_object_without_outline_is_one_bad_record_or_none() -> None:
    document = valid()
    document["annotations"][0]["segmentation"] = []
    assert content(document) == (content(without(valid(), "annotations", 0))[0], 1)
    assert content(document, outlines=False)[1] == 0
    for record in document["annotations"]:
        record["segmentation"] = None
    with pytest.raises(
        DataError, match=r"6 annotations have no segmentation, such as annotation 100\. Set masks: false"
    ):
        content(document)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda code: code[:-1], "damaged|does not end"),
        (lambda code: code + "0", "does not end"),
        (lambda code: code + "P", "is damaged"),
        (lambda code: " " + code, "is damaged"),
        (lambda code: code + "o" * 9 + "0", "is damaged"),
        (lambda code: "é" + code, "a code or a list of numbers"),
        (lambda code: code[:2] + "O" + code[2:], "damaged|does not end"),
    ],
)
def test_a_broken_run_length_code_is_found_when_compiled(spoil: Any, reason: str, tmp_path: Path) -> None:
    document = valid()
    outline = document["annotations"][1]["segmentation"]
    outline["counts"] = spoil(outline["counts"])
    assert content(document) == (content(without(valid(), "annotations", 1))[0], 1)
    (tmp_path / "a.json").write_text(json.dumps(document))
    annotations = Annotations(tmp_path / "a.json", outlines=True)
    assert len(annotations.problems) == 1
    assert any(part in annotations.problems[0][1] for part in reason.split("|"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1)), min_size=1, max_size=6))
def test_codes_have_as_many_pixels_as_the_coco_api_says(shapes: list[tuple[int, int, int]]) -> None:
    codes, pixels = [], []
    for height, width, seed in shapes:
        mask = np.random.default_rng(seed).integers(0, 2, (height, width), np.uint8).repeat(seed % 30 + 1, axis=0)
        codes.append(coco_mask.encode(np.asfortranarray(mask))["counts"])
        pixels.append(mask.size)
    ends = np.append(0, np.cumsum([len(code) for code in codes]))
    assert coded_pixels(np.frombuffer(b"".join(codes), np.uint8), ends).tolist() == pixels


def test_a_polygon_far_outside_costs_nothing(tmp_path: Path) -> None:
    for outline in ([[0, 0, 1e8, 0, 1e8, 1e8]], [[40, 0, 60, 0, 60, 20]], [[0, -9, 9, -9, 5, -1]]):
        document = valid()
        document["annotations"][0]["segmentation"] = outline
        assert content(document) == (content(without(valid(), "annotations", 0))[0], 1)


def test_a_gigantic_value_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.json_records.MAX_VALUE", 1 << 16)
    monkeypatch.setattr("datamodules.json_records.CHUNK", 1 << 12)
    document = valid()
    document["extra"] = [["a" * 100] * 10] * 1000  # passed over element by element
    assert content(document) == content(valid())
    document["annotations"][0]["segmentation"] = [[1.5] * 40_000]
    with pytest.raises(DataError, match=r"a value of more than 65,536 characters \(near character"):
        content(document)


def test_a_file_of_nothing_but_bad_records_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.coco_compile.HOPELESS", 50)
    with pytest.raises(DataError, match=r"none of its first 50 records can be used; images record that is no object"):
        content({"images": [[]] * 50} | {key: valid()[key] for key in ("annotations", "categories")})
    assert content(valid() | {"extra": []}) == content(valid())


def test_a_huge_image_and_a_category_beyond_all_labels(tmp_path: Path) -> None:
    document = valid()
    document["images"][0] |= {"height": 10**9, "width": 10**9}
    found, problems = content(document)
    assert (found, problems) == (content(without(valid(), "images", 0))[0], 3)


def test_compiling_writes_no_more_than_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(valid()))
    (tmp_path / "out").mkdir()
    partial(compile_annotations, tmp_path / "a.json", True)(tmp_path / "out")
    assert all(np.load(file, allow_pickle=False).dtype.kind in "biuf" for file in (tmp_path / "out").iterdir())
