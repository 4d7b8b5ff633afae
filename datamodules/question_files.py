"""Questions about images, as the files of VQA v2 and of CLEVR have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.errors import DataError
from datamodules.json_records import records

# With fewer answers than this, none can be quite right by VQA v2's formula; one answer alone is compared by itself.
FEWEST_ANSWERS = 4
# By the last step of its program, what a question of CLEVR asks for.
_CLEVR_TYPES = {
    "count": "count",
    "exist": "exist",
    **dict.fromkeys(("equal_integer", "less_than", "greater_than"), "compare numbers"),
    **{f"query_{what}": "query attribute" for what in ("size", "color", "material", "shape")},
    **{f"equal_{what}": "compare attribute" for what in ("size", "color", "material", "shape")},
}
# What leaves out records that cannot be used: the file, and of each the record and the reason.
LeaveOut = Callable[[Path, list[tuple[str, str]]], None]


@dataclass(frozen=True)
class Question:
    """A question about an image.

    Args:
        number: As the file has it.
        image: Number of the image.
        text: What is asked.
        humans: What people answered; empty where nobody says.
        answer_type: Of what kind the answer is; empty where nobody says.
        question_type: Of what kind the question is.
    """

    number: int
    image: int
    text: str
    humans: tuple[str, ...] = ()
    answer_type: str = ""
    question_type: str = ""


def vqa_questions(path: Path, annotations: Path | None, leave_out: LeaveOut) -> list[Question]:
    """The questions of a file in VQA v2's layout, with the answers of another.

    Args:
        path: ``questions``: ``question_id``, ``image_id`` and ``question`` of each.
        annotations: ``annotations``: ``question_id``, ``question_type``, ``answer_type`` and ``answers``, a list of
            objects with ``answer``; None for questions without answers.
        leave_out: Is told of records that cannot be used.

    Raises:
        DataError: A file that cannot be read, or without a question.
    """
    answered = {} if annotations is None else _annotations(annotations, leave_out)
    found: dict[int, Question] = {}
    problems: list[tuple[str, str]] = []
    for place, (_, record) in enumerate(_sections(path, "questions")):
        try:
            number, image = _integer(record, "question_id"), _integer(record, "image_id")
            text = _text(record, "question")
            if number in found:
                raise DataError(f"question_id {number} is there twice")
            if annotations is not None and number not in answered:
                raise DataError(f"question_id {number} has no annotation in {annotations.name}")
            found[number] = Question(number, image, text, *answered.get(number, ()))
        except DataError as problem:
            problems.append((f"question {place}", str(problem)))
    leave_out(path, problems)
    return _some(found, path)


def clevr_questions(path: Path, leave_out: LeaveOut) -> list[Question]:
    """The questions of a file in CLEVR's layout, each with one answer where the file has them.

    Args:
        path: ``questions``: ``image_index``, ``question``, and perhaps ``answer``, ``program`` and ``question_index``.
        leave_out: Is told of records that cannot be used.

    Raises:
        DataError: A file that cannot be read, or without a question.
    """
    found: dict[int, Question] = {}
    problems: list[tuple[str, str]] = []
    for place, (_, record) in enumerate(_sections(path, "questions")):
        try:
            image, text = _integer(record, "image_index"), _text(record, "question")
            number = _integer(record, "question_index") if "question_index" in record else place
            if number in found:
                raise DataError(f"question_index {number} is there twice")
            humans = (_text(record, "answer"),) if "answer" in record else ()
            kind = _asked_for(record.get("program"))
            found[number] = Question(number, image, text, humans, kind, kind)
        except DataError as problem:
            problems.append((f"question {place}", str(problem)))
    leave_out(path, problems)
    return _some(found, path)


def _annotations(path: Path, leave_out: LeaveOut) -> dict[int, tuple[tuple[str, ...], str, str]]:
    """Answers, their kind and that of the question, by the number of the question."""
    found: dict[int, tuple[tuple[str, ...], str, str]] = {}
    problems: list[tuple[str, str]] = []
    for place, (_, record) in enumerate(_sections(path, "annotations")):
        try:
            number = _integer(record, "question_id")
            if number in found:
                raise DataError(f"question_id {number} is there twice")
            answers = record.get("answers")
            if not isinstance(answers, list) or not answers:
                raise DataError(f"question_id {number}: answers is no list, or empty")
            humans = tuple(_text(answer, "answer") for answer in answers)
            if 1 < len(humans) < FEWEST_ANSWERS:
                raise DataError(
                    f"question_id {number} has {len(humans)} answers: with fewer than {FEWEST_ANSWERS} no answer is "
                    "quite right by VQA v2's formula; give one, which is compared by itself"
                )
            found[number] = humans, str(record.get("answer_type", "")), str(record.get("question_type", ""))
        except DataError as problem:
            problems.append((f"annotation {place}", str(problem)))
    leave_out(path, problems)
    return found


def _sections(path: Path, section: str) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise DataError(
            f"{path} is missing. The options of the data say what the files of questions and annotations are called, "
            "and which subsets there are."
        )
    yield from records(path, frozenset({section}))


def _some(found: dict[int, Question], path: Path) -> list[Question]:
    if not found:
        raise DataError(f"{path} has no question that can be used.")
    return list(found.values())


def _integer(record: Any, field: str) -> int:
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise DataError(f"{field} is missing or no number from 0 on")
    return value


def _text(record: Any, field: str) -> str:
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{field} is missing, empty or no text")
    return value


def _asked_for(program: Any) -> str:
    """What the last step of a program gives; empty without one."""
    last = program[-1] if isinstance(program, list) and program else None
    step = (last.get("function") or last.get("type")) if isinstance(last, dict) else None
    return _CLEVR_TYPES.get(str(step), str(step)) if step else ""
