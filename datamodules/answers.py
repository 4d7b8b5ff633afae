"""Answers as the evaluation of VQA v2 compares them: normalised, as soft targets, and how right one is.

Reference: "Making the V in VQA Matter", arXiv 1612.00837, and the published evaluation of VQA v2, of which oddities are
kept, for numbers are compared with those of others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_A_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The published evaluation removes this many of an answer, by a mistake.
_MOST_PERIODS = 32
# A word that lacks one of its apostrophes gets it back.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, mark in enumerate(word)
    if mark == "'"
}
# Published the wrong way round.
_CONTRACTIONS["somebody'd"] = "somebodyd"


def without_punctuation(answer: str) -> str:
    """An answer without punctuation.

    A mark becomes a blank, or nothing if the answer has one beside a blank, or a comma between digits. Periods before
    digits stay.
    """
    number, stripped = _COMMA_IN_A_NUMBER.search(answer), answer
    for mark in _PUNCTUATION:
        beside_a_blank = f"{mark} " in answer or f" {mark}" in answer
        stripped = stripped.replace(mark, "" if number or beside_a_blank else " ")
    return _PERIOD.sub("", stripped, count=_MOST_PERIODS)


def with_plain_words(answer: str) -> str:
    """An answer in lower case, with digits for numbers, without articles, and with the apostrophes of contractions."""
    words = [_DIGITS.get(word, word) for word in answer.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(1 << 16)
def normalised(answer: str) -> str:
    """An answer as lists of known answers and soft targets have it."""
    return with_plain_words(without_punctuation(answer)).replace(",", "")


def soft_target(
    humans: Sequence[str], numbers: Mapping[str, int], kind: Literal["score", "share"] = "score"
) -> np.ndarray:
    """How right each known answer is, by what people answered.

    Args:
        humans: Their answers, ten of a question.
        numbers: Known answers, normalised, by number.
        kind: `score`: 0, 0.3, 0.6, 0.9 and 1 for none, one, two, three and more people; `share`: a tenth for each, for
            a loss that compares distributions.

    Returns:
        Float32 [known answers]; unknown ones count for nothing.
    """
    target = np.zeros(len(numbers), np.float32)
    for answer, count in Counter(map(normalised, humans)).items():
        if answer in numbers:
            target[numbers[answer]] = min(1.0, 0.3 * count) if kind == "score" else count / 10
    return target


def as_said(prediction: str) -> str:
    """A prediction as the evaluation compares it with what people answered."""
    return with_plain_words(without_punctuation(re.sub(r"[\n\t]", " ", prediction).strip()))


def as_compared(humans: Sequence[str]) -> Sequence[str]:
    """People's answers as predictions are compared with them: without punctuation, but only if they differ."""
    return [without_punctuation(answer) for answer in humans] if len(set(humans)) > 1 else humans


def vqa_accuracy(prediction: str, humans: Sequence[str]) -> float:
    """How right an answer is, from 0 to 1: mean of min(1, others who say so / 3), each person left out once.

    The prediction is normalised; of people's answers, only if they differ, punctuation alone is, as published.

    Args:
        prediction: The answer.
        humans: People's answers, ten of a question.
    """
    said = as_said(prediction)
    return _credit(sum(answer == said for answer in as_compared(humans)), len(humans))


def _credit(agreeing: int, humans: int) -> float:
    """How right an answer is that so many of some people gave."""
    others = [agreeing - (person < agreeing) for person in range(humans)]
    return float(np.mean([min(1.0, each / 3) for each in others]))


class KnownAnswers:
    """The answers that a network knows, and how right each of them is.

    Args:
        answers: Normalised, by number.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = tuple(answers)
        self.numbers = {answer: number for number, answer in enumerate(answers)}
        # Several known answers may be one to the evaluation.
        self._said: dict[str, list[int]] = {}
        for number, answer in enumerate(answers):
            self._said.setdefault(as_said(answer), []).append(number)

    @classmethod
    def of(cls, questions: Iterable[Sequence[str]], fewest: int) -> KnownAnswers:
        """The answers that most people gave to enough questions, in order of their first appearance.

        Args:
            questions: People's answers to each.
            fewest: Questions whose most frequent answer it has to be.
        """
        counts = Counter(normalised(Counter(humans).most_common(1)[0][0]) for humans in questions)
        return cls([answer for answer, count in counts.items() if count >= fewest])

    def __len__(self) -> int:
        return len(self.answers)

    def counts(self, humans: Sequence[str]) -> np.ndarray:
        """How many people gave each answer, uint8 [known answers]; unknown ones count for nothing."""
        counts = np.zeros(len(self), np.uint8)
        for answer in map(normalised, humans):
            if answer in self.numbers:
                counts[self.numbers[answer]] += 1
        return counts

    def scores(self, humans: Sequence[str]) -> np.ndarray:
        """`vqa_accuracy` of each answer, float32 [known answers]; of one person alone, whether it is the same."""
        if len(humans) == 1:
            return (self.counts(humans) > 0).astype(np.float32)
        scores = np.zeros(len(self), np.float32)
        for answer, count in Counter(as_compared(humans)).items():
            scores[self._said.get(answer, [])] = _credit(count, len(humans))
        return scores
