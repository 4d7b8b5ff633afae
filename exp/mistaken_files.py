"""Files that people mistake for weights: what they are, told from how they begin, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

AGAIN = "copy or download it again"
_LONGEST_JSON = 100_000_000
# How files begin that people mistake for weights.
_BEGINNINGS: dict[bytes, str] = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch the file by `git lfs pull`",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"(\xb5/\xfd": "compressed by zstd: unpack it first",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x89HDF": "a file of HDF5, as Keras writes it; exp reads weights of torch, numpy and safetensors",
    b"GGUF": "a file of GGUF; exp reads weights of torch, numpy and safetensors",
    b"PK": "cut off or damaged (no whole zip archive): " + AGAIN,
}
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<error")
# How TensorFlow's tables end.
_TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_OF_TENSORFLOW = "a checkpoint of TensorFlow; exp reads weights of torch, numpy and safetensors"


def what_it_is(start: bytes, file: IO[bytes], path: Path) -> str:
    """What a file is that is no file of weights, and what to do about it.

    Args:
        start: How it begins.
        file: The file, at its beginning.
        path: Its path.

    Returns:
        A phrase, without the file's name.
    """
    for beginning, what in _BEGINNINGS.items():
        if start.startswith(beginning):
            return what
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGES):
        return "a web page, not weights: the download led to a page; download it by the link of the file itself"
    if text.startswith((b"{", b"[")):
        return _told_json(file)
    file.seek(-min(8, len(start)), 2)
    if file.read() == _TABLE_END or ".data-0" in path.name or path.suffix in (".pb", ".tflite"):
        return _OF_TENSORFLOW
    if path.suffix == ".onnx" or (start[:1] == b"\x08" and b"\x12" in start[2:5]):
        return "a network of ONNX; exp reads weights of torch, numpy and safetensors"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if not start.strip(b"\0"):
        return f"cut off or damaged (it begins with zeros): {AGAIN}"
    wanted = "safetensors file" if path.suffix == ".safetensors" else "checkpoint of torch, numpy or safetensors"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return f"text, not a {wanted} (it begins with {start[:40].decode(errors='replace')!r})"
    return f"not a {wanted} (it begins with the bytes {start[:8].hex(' ')})"


def _told_json(file: IO[bytes]) -> str:
    try:
        said = json.loads(file.read(_LONGEST_JSON))
    except (ValueError, RecursionError):
        return "text, not a checkpoint (it begins like JSON but is none)"
    if isinstance(said, dict) and "weight_map" in said:
        return "an index of weights that are in several files beside it; exp reads one file"
    return "JSON, not weights: perhaps what a server answered instead of the file; download it again"
