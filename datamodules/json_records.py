"""A JSON file one record at a time: half a gigabyte of text never becomes Python objects all at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from datamodules.errors import DataError

CHUNK = 1 << 22
# No record comes near; of brackets alone, so much text makes a gigabyte of objects.
MAX_VALUE = 1 << 26
_SPACE = re.compile(r"[ \t\r\n]*")


def records(path: Path, sections: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Elements of some top-level arrays of a JSON object, in the file's order.

    Args:
        path: The file, a JSON object in UTF-8, or in any Unicode encoding that its byte-order mark names.
        sections: Keys whose arrays are wanted, and must be there; what other keys hold is skipped.

    Yields:
        Key and element, such as ``("images", {"id": 9, ...})``.

    Raises:
        DataError: If the file cannot be read, is no JSON object, or a wanted key is not there once, with an array.
    """
    with _opened(path) as reader:
        yield from reader.records(sections)


def listed(path: Path, of: str) -> Iterator[Any]:
    """Elements of a JSON file that is one array.

    Args:
        path: The file, encoded as for ``records``.
        of: What it should be a list of, for messages.

    Raises:
        DataError: If the file cannot be read or is no JSON array.
    """
    with _opened(path) as reader:
        yield from reader.elements(f"must hold a JSON list of {of}, and does not")
        reader.end()


@contextmanager
def _opened(path: Path) -> Iterator[_Reader]:
    encoding = "utf-8"
    try:
        with path.open("rb") as start:
            encoding = json.detect_encoding(start.read(4))
        with path.open(encoding=encoding) as stream:
            yield _Reader(stream, path)
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror or problem}.") from problem
    except UnicodeError as problem:
        raise DataError(f"{path} is no {encoding.upper()} text: {problem}. Get the file again.") from problem


class _Reader:
    """A window on the text that moves on as values are taken from it."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self.stream, self.path = stream, path
        self.text, self.at, self.before, self.ended = "", 0, 0, False
        self.decode = json.JSONDecoder().raw_decode

    def records(self, sections: frozenset[str]) -> Iterator[tuple[str, Any]]:
        found: set[str] = set()
        self.expect("{", "is no JSON object")
        while self.peek() != "}":
            if self.peek() != '"':
                raise self.error("is damaged or cut off: a key in quotes is missing")
            key = self.value()
            self.expect(":", f"has no ':' after the key {key[:50]!r}")
            if key in found:
                raise self.error(f"has {key!r} twice")
            if key in sections:
                found.add(key)
                for element in self.elements(f"has no array under {key!r}"):
                    yield key, element
            else:
                self.skip()
            if self.peek() != ",":
                break
            self.at += 1
        self.expect("}", "does not end with '}'")
        self.end()
        if missing := sorted(sections - found):
            raise DataError(f"{self.path} has no {', no '.join(missing)}; it needs {', '.join(sorted(sections))}.")

    def elements(self, otherwise: str) -> Iterator[Any]:
        """Values of the array that comes next; ``otherwise`` is said if none does."""
        self.expect("[", otherwise)
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.peek() != ",":
                break
            self.at += 1
        self.expect("]", "is damaged or cut off: an array does not end")

    def skip(self) -> None:
        """Passes over a value; over an array element by element."""
        if self.peek() == "[":
            for _ in self.elements(""):
                pass
        else:
            self.value()

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError as problem:
                if self.ended:
                    raise self.error(f"is damaged or cut off: {problem.msg}") from problem
            except RecursionError as problem:
                raise self.error("holds lists within lists without end") from problem
            except ValueError as problem:
                # Python makes no number of more than 4300 digits.
                raise self.error("holds a number of thousands of digits") from problem
            else:
                # A number at the end of the window may go on after it.
                if self.ended or end < len(self.text):
                    self.at = end
                    return value
            if len(self.text) - self.at > MAX_VALUE:
                raise self.error(f"is damaged, or has a value of more than {MAX_VALUE:,} characters")
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

    def end(self) -> None:
        if self.peek():
            raise self.error("goes on after its end")

    def more(self) -> None:
        # As much again, so that a long value is not decoded from its start hundreds of times.
        read = self.stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not read
        self.before += self.at
        self.text, self.at = self.text[self.at :] + read, 0

    def error(self, reason: str) -> DataError:
        return DataError(f"{self.path} {reason} (near character {self.before + self.at:,}). Get the file again.")
