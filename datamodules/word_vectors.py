"""Vectors of words out of files: GloVe's text, or an archive of numpy's."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from datamodules.errors import DataError


def word_vectors(path: Path, words: Collection[str]) -> dict[str, np.ndarray]:
    """Vectors of those of some words that a file has.

    Args:
        path: A text of a word and its numbers a line, as GloVe has them; or a ``.npz`` with ``words``, texts [n], and
            ``vectors`` [n,dim].
        words: Which are wanted.

    Returns:
        Float32 [dim] each, by word.

    Raises:
        DataError: It cannot be read, holds vectors of several lengths or what is no number, or has none of the words.
    """
    wanted = set(words)
    found: dict[str, np.ndarray] = {}
    for place, word, vector in _archived(path) if path.suffix == ".npz" else _lines(path):
        if word not in wanted:
            continue
        if not np.isfinite(vector).all():
            raise DataError(f"{path}, {place}: the vector of {word!r} holds what is no finite number.")
        if found and vector.shape != next(iter(found.values())).shape:
            raise DataError(f"{path}, {place}: {word!r} has {len(vector)} numbers, and words before it have others.")
        found.setdefault(word, vector)
    if not found:
        raise DataError(f"{path} has a vector of none of the {len(wanted)} words of the questions. Give another file.")
    return found


def _lines(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                word, *values = line.rstrip("\n").split(" ")
                if number == 1 and len(values) == 1:
                    # How many words and numbers there are, as word2vec's texts begin.
                    continue
                try:
                    yield f"line {number}", word, np.array(values, np.float32)
                except ValueError as problem:
                    raise DataError(f"{path}, line {number} is no word with its numbers: {problem}.") from problem
    except (OSError, UnicodeError) as problem:
        raise DataError(f"{path} cannot be read: {problem}.") from problem


def _archived(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as content:
            words, vectors = content["words"], content["vectors"].astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
        raise DataError(f"{path} is no archive with `words` and `vectors`: {problem}.") from problem
    if words.ndim != 1 or vectors.ndim != 2 or len(words) != len(vectors):
        raise DataError(f"{path}: words {list(words.shape)} and vectors {list(vectors.shape)} do not fit each other.")
    for place, (word, vector) in enumerate(zip(words.tolist(), vectors, strict=True)):
        yield f"word {place}", str(word), vector
