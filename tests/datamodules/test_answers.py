"""Answers as the evaluation of VQA v2 has them, of which the given vectors hold the usual ones; here are odd ones."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.answers import normalised, soft_target, vqa_accuracy, with_plain_words, without_punctuation


@pytest.mark.parametrize(
    ("answer", "stripped"),
    [
        ("a/b", "a b"),
        ("a/ b", "a b"),
        # One mark beside a blank, and all of its kind vanish.
        ("a/b /c", "ab c"),
        # A comma between digits does this to every mark, in the whole answer.
        ("1,000/2-b", "10002b"),
        ("1, 2", "1 2"),
        ("3.5 m.", "3.5 m"),
        (".5 u.s.", ".5 us"),
        ("." * 40, "." * 8),
        ("it's: 5%", "it's: 5%"),
    ],
)
def test_punctuation(answer: str, stripped: str) -> None:
    assert without_punctuation(answer) == stripped


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The  an A", ""),
        ("None ZERO ten eleven", "0 0 10 eleven"),
        ("dont couldntve couldn'tve couldnt've", "don't couldntve couldn't've couldn't've"),
        ("shes lets id've im", "shes lets id've im"),
        ("ow's'at twas somebody'd somebodyd", "'ow's'at 'twas somebodyd somebodyd"),
        ("two-year", "two-year"),
    ],
)
def test_plain_words(answer: str, plain: str) -> None:
    assert with_plain_words(answer) == plain


def test_commas_that_are_left_go_last() -> None:
    assert normalised("Yes, two") == "yes 2"
    assert normalised("2,000 the") == "2000"


def test_accuracy_leaves_each_person_out() -> None:
    for agreeing, accuracy in ((0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)):
        humans = ["red"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
        assert vqa_accuracy("Red", humans) == pytest.approx(accuracy)
    # People who all say the same are taken at their word, and otherwise lose their punctuation, but not their articles.
    assert vqa_accuracy("t-shirt", ["t-shirt"] * 10) == 0
    assert vqa_accuracy("t-shirt", ["t-shirt"] * 9 + ["shirt"]) == 1
    assert vqa_accuracy("the cat", ["the cat"] * 9 + ["cat"]) == pytest.approx(0.3)
    assert vqa_accuracy("red\tcar\n", ["red car"] * 10) == 1


def test_soft_targets_count_people() -> None:
    numbers = {"yes": 0, "no": 1, "2": 2}
    humans = ["Yes."] * 5 + ["two", "2"] + ["no"] + ["maybe"] * 2
    np.testing.assert_allclose(soft_target(humans, numbers), [1.0, 0.3, 0.6])
    np.testing.assert_allclose(soft_target(humans, numbers, "share"), [0.5, 0.1, 0.2])
    assert soft_target([], numbers).dtype == np.float32
