"""A COCO JSON file one record at a time: half a gigabyte of text never becomes Python objects all at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from datamodules.errors import DataError

CHUNK = 1 << 22
_SPACE = re.compile(r"[ \t\r\n]*")


def records(path: Path, sections: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Elements of some top-level arrays of a JSON object, in the file's order.

    Args:
        path: The file, a JSON object.
        sections: Keys whose arrays are wanted; what other keys hold is skipped.

    Yields:
        Key and element, such as ``("images", {"id": 9, ...})``.

    Raises:
        DataError: If the file cannot be read, is no JSON object, or a wanted key holds no array.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            yield from _Reader(stream, path).records(sections)
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is no UTF-8 text: {problem}.") from problem


class _Reader:
    """A window on the text that moves on as values are taken from it."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self.stream, self.path = stream, path
        self.text, self.at, self.before, self.ended = "", 0, 0, False
        self.decode = json.JSONDecoder().raw_decode

    def records(self, sections: frozenset[str]) -> Iterator[tuple[str, Any]]:
        self.expect("{", "is no JSON object")
        if self.peek() == "}":
            return
        while True:
            key = self.value()
            self.expect(":", f"has no ':' after the key {key!r}")
            if key in sections:
                yield from ((key, element) for element in self.elements(key))
            else:
                self.value()
            if self.peek() != ",":
                break
            self.at += 1
        self.expect("}", "does not end with '}'")

    def elements(self, key: str) -> Iterator[Any]:
        self.expect("[", f"has no array under {key!r}")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.peek() != ",":
                break
            self.at += 1
        self.expect("]", f"has an array {key!r} that does not end")

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError as problem:
                if self.ended:
                    raise self.error(f"is damaged or cut off: {problem.msg}") from problem
            else:
                # A number at the end of the window may go on after it.
                if self.ended or end < len(self.text):
                    self.at = end
                    return value
            self.more()

    def peek(self) -> str:
        """The next character that is not space; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def expect(self, sign: str, otherwise: str) -> None:
        if self.peek() != sign:
            raise self.error(otherwise)
        self.at += 1

    def more(self) -> None:
        read = self.stream.read(CHUNK)
        self.ended = not read
        self.before += self.at
        self.text, self.at = self.text[self.at :] + read, 0

    def error(self, reason: str) -> DataError:
        return DataError(f"{self.path} {reason} (near character {self.before + self.at:,}). Get the file again.")
