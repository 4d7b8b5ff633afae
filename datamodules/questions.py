"""Questions as words, and words as numbers.

Reference: "Deep Modular Co-Attention Networks for Visual Question Answering", arXiv 1906.10770, and its published code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

# The words that are none, which every vocabulary begins with: behind the last word, not in it, and a whole question.
PAD, UNKNOWN, WHOLE = "PAD", "UNK", "CLS"
_MARKS = str.maketrans({**dict.fromkeys(".,'!?\"()*#:;", ""), "-": " ", "/": " "})


def words_of(question: str) -> list[str]:
    """The words of a question: in lower case, without most punctuation, parted at hyphens and slashes."""
    return question.lower().translate(_MARKS).split()


class Vocabulary:
    """Words by number, from 0 on.

    Args:
        words: In order, those of `PAD`, `UNKNOWN` and `WHOLE` first.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.numbers = {word: number for number, word in enumerate(words)}

    @classmethod
    def of(cls, questions: Iterable[str]) -> Vocabulary:
        """The words of questions, in order of their first appearance.

        Numbers depend on which questions there are and on their order: keep the vocabulary with the weights.
        """
        seen = dict.fromkeys((PAD, UNKNOWN, WHOLE))
        for question in questions:
            seen.update(dict.fromkeys(words_of(question)))
        return cls(list(seen))

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, question: str, length: int) -> np.ndarray:
        """Words of a question by number.

        Args:
            question: As it was asked.
            length: Words that are kept; a shorter question is filled up.

        Returns:
            Int64 [length].
        """
        unknown = self.numbers[UNKNOWN]
        numbers = [self.numbers.get(word, unknown) for word in words_of(question)[:length]]
        encoded = np.full(length, self.numbers[PAD], np.int64)
        encoded[: len(numbers)] = numbers
        return encoded
