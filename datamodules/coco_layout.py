"""Where the annotations and images of a data set in COCO's format are, found by looking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from datamodules.box_records import Part
from datamodules.errors import DataError
from datamodules.finding import shown
from datamodules.json_records import records

Kind = Literal["instances", "keypoints"]
# By split, what names of files and folders have.
WORDS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# How much of a file is looked at to see whether it may be one.
HEAD = 1 << 16


def coco_parts(
    root: Path, given: Mapping[str, tuple[str | None, str | None]], kind: Kind, wanted: str
) -> dict[str, Part]:
    """The splits of a data set in COCO's format, as told where that is told, else as found by looking.

    Args:
        root: The folder, or one JSON file.
        given: By split, the folder of the images and the JSON file, in ``root``; None for one that is looked for.
        kind: What the annotations are of.
        wanted: What the data may look like, for messages.

    Raises:
        DataError: If a file that is named is missing, or there is nothing to train on.
    """
    named = {split: root / file for split, (_, file) in given.items() if file}
    folders = {split: root / images for split, (images, _) in given.items() if images}
    parts = {} if "train" in named else find_coco(root, folders, kind)
    for split, file in named.items():
        if not file.is_file():
            raise DataError(f"{file} is missing. Name the file by {split}_annotations, from {root}.")
        parts[split] = Part(folders.get(split) or image_folder(file, split, root), file)
    if "train" not in parts:
        raise DataError(f"{root} has no annotations in COCO's format. {wanted}")
    return parts


def find_coco(
    root: Path, images: Mapping[str, Path] = MappingProxyType({}), kind: Kind = "instances"
) -> dict[str, Part]:
    """The splits of a data set in COCO's format; empty if there is none.

    Annotations are looked for in the folder, in its `annotations` and in its folders of splits; of several files of a
    split, that of the kind is taken. Images are looked for where the first image of the file is.

    Args:
        root: The folder, or one JSON file.
        images: Folders of images that are known, by split.
        kind: What the annotations are of.

    Raises:
        DataError: If there are annotations, and one of several cannot be chosen, or their images are nowhere.
    """
    if root.is_file():
        files = [root] if root.suffix == ".json" else []
    else:
        places = [root, root / "annotations", *(root / word for words in WORDS.values() for word in words)]
        files = [path for place in places if place.is_dir() for path in sorted(place.glob("*.json")) if _may_be(path)]
    found: dict[str, Path] = {}
    for split in WORDS:
        of_split = [path for path in files if _split_of(path, root) == split]
        of_kind = [path for path in of_split if kind in path.name]
        if len(of_kind or of_split) > 1:
            raise DataError(
                f"{root} has several annotation files of the {split} split ({', '.join(map(str, of_split))}): name the "
                f"one by {split}_annotations."
            )
        if of_split:
            found[split] = (of_kind or of_split)[0]
    if "train" not in found and len(files) == 1:
        found = {"train": files[0]}
    if "train" not in found:
        return {}
    return {split: Part(images.get(split) or image_folder(file, split, root), file) for split, file in found.items()}


def image_folder(annotations: Path, split: str, root: Path) -> Path:
    """The folder that the images of an annotation file are in: that of its first image.

    Raises:
        DataError: If it is nowhere.
    """
    name = next(
        (str(record["file_name"]) for _, record in records(annotations, frozenset({"images"})) if _names_file(record)),
        None,
    )
    root = root if root.is_dir() else root.parent
    named = annotations.stem.removeprefix("instances_").removeprefix("person_keypoints_")
    tried = [
        *(annotations.parent / within for within in ("", "images")),
        *(root / within for within in ("", "images", named, f"images/{named}", "JPEGImages")),
        *(root / within for word in WORDS[split] for within in (word, f"images/{word}", f"{word}/images")),
    ]
    for folder in tried:
        if name is None or (folder / name).is_file():
            return folder
    raise DataError(
        f"{annotations}: its first image is {shown(str(name))}, which is in none of "
        f"{', '.join(dict.fromkeys(map(str, tried)))}. Name the folder by {split}_images."
    )


def _names_file(record: object) -> bool:
    return isinstance(record, dict) and isinstance(record.get("file_name"), str)


def _may_be(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(max(HEAD, path.stat().st_size - HEAD))
            text = head + file.read(HEAD)
    except OSError:
        return False
    return text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and any(
        key in text for key in (b'"images"', b'"annotations"', b'"categories"')
    )


def _split_of(path: Path, root: Path) -> str | None:
    """The split that a file's name, or its folder's, has."""
    for text in (path.stem, "" if path.parent == root else path.parent.name):
        words = "".join(sign if sign.isalpha() else " " for sign in text.lower()).split()
        for split, names in WORDS.items():
            if any(word in names for word in words):
                return split
    return None
