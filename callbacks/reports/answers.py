"""What a network answers: a file for the server, accuracies by kind, and questions with what was looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure
from typing_extensions import override

from callbacks.reports.looks import Look, looks
from callbacks.reports.report import Report
from callbacks.whole_files import write_whole
from drawing.figures import SMALL
from drawing.questions import Answered, accuracy_bars, answer_sheet
from lightning_modules.question_answering import AnswerFindings, QuestionAnswering, by_kind
from models.decisions import forget, noted

RIGHT, WRONG = "#1a7f37", "#b3261e"


class Answers(Report):
    """Writes the answers of an evaluation, and draws how right they are and how they were found.

    - `answers.json`, as the server of VQA v2 takes it: a list of `question_id` and `answer`;
    - `accuracy_by_kind.png`, by the kinds of answers and of questions;
    - `answered.png`, the first questions of each kind, what the answer takes of the image, and how far layers look.

    Args:
        drawn: Questions on the picture.
    """

    reads = QuestionAnswering
    pictures: ClassVar = {
        "accuracy_by_kind.png": "how often each kind of question is answered rightly",
        "answered.png": "questions, what their answers take of the image, and how far each layer looks",
    }
    files: ClassVar = {
        "answers.json": "the answers of the last evaluation, as the server of VQA v2 takes them",
    }

    def __init__(self, drawn: int = 6) -> None:
        self.drawn = drawn
        self._looks: dict[int, Look] = {}
        self._kinds: dict[int, int] = {}

    @override
    def start(self) -> None:
        self._looks, self._kinds = {}, {}

    @override
    def look(self, batch: Any) -> None:
        forget(self.task.network)

    @override
    def keep(self, batch: Any, outputs: Any) -> None:
        if len(self._looks) >= self.drawn or not self.trainer.is_global_zero:
            return
        most = -(-self.drawn // max(1, len(self.data.question_types)))
        chosen: list[int] = []
        for row, kind in enumerate(batch["question_type"].tolist()):
            if len(self._looks) + len(chosen) < self.drawn and self._kinds.get(kind, 0) < most:
                self._kinds[kind] = self._kinds.get(kind, 0) + 1
                chosen.append(row)
        found = looks(noted(self.task.network), chosen)
        self._looks |= {int(batch["index"][row]): look for row, look in zip(chosen, found, strict=True)}

    @override
    def draw(self) -> Mapping[str, Figure]:
        found = self.task.findings
        if not isinstance(found, AnswerFindings):
            return {}
        figures = {}
        if "accuracy" in found.metrics:
            panels = {
                title: self._accuracies(found, kind, names)
                for title, kind, names in (
                    ("by kind of answer", found.answer_type, self.data.answer_types),
                    ("by kind of question", found.question_type, self.data.question_types),
                )
            }
            title = f"{self.split}: accuracy {found.metrics['accuracy']:.1%} of {len(found.index):,} questions"
            if any(panels.values()):
                figures["accuracy_by_kind"] = accuracy_bars({k: v for k, v in panels.items() if v}, title)
        if self._looks:
            sheet = [self._answered(found, index, look) for index, look in self._looks.items()]
            figures["answered"] = answer_sheet(sheet, f"{self.split}: some questions")
        return figures

    def _accuracies(self, found: AnswerFindings, kind: Any, names: list[str]) -> dict[str, tuple[float, int]]:
        counts = kind.bincount(minlength=len(names)).tolist()
        return {
            name: (value, counts[names.index(name)])
            for name, value in by_kind(found.score.double(), kind, names).items()
        }

    def _answered(self, found: AnswerFindings, index: int, look: Look) -> Answered:
        row = int((found.index == index).nonzero()[0])
        answer, score = self.data.known.answers[int(found.answer[row])], float(found.score[row])
        humans = self.data.questions(self.split).humans(index)
        expected = max(set(humans), key=humans.count) if humans else ""
        caption = f"{answer}" if score > 0 or not humans else f"{answer}, not {expected}"
        return Answered(
            self.data.picture(self.split, index, SMALL) if self.data.features is None else None,
            self.data.questions(self.split).texts[index],
            caption,
            "black" if not humans else RIGHT if score > 0 else WRONG,
            look.attention,
            look.spans,
            look.span_names,
        )

    @override
    def write(self, folder: Path) -> None:
        found = self.task.findings
        if not isinstance(found, AnswerFindings):
            return
        numbers, answers = self.data.questions(self.split).numbers, self.data.known.answers
        given = [
            {"question_id": int(numbers[index]), "answer": answers[answer]}
            for index, answer in zip(found.index.tolist(), found.answer.tolist(), strict=True)
        ]
        write_whole(folder / "answers.json", json.dumps(given))
