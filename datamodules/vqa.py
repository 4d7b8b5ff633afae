"""VQA v2 and CLEVR, and any data set in their layouts."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
from typing_extensions import override

from datamodules.question_answering import QuestionData
from datamodules.question_files import Question, clevr_questions, vqa_questions
from datamodules.transforms.pipeline import Transform


class VQA(QuestionData):
    """VQA v2: ten people's answers to each question, and images that are known by a number.

    A subset has a file of questions, one of annotations but for those of a test, and a folder of images or features. An
    image may lie in the folder of any subset, as those of Visual Genome's questions do.

    Args:
        root: Folder of the data set.
        batch_size: Questions of one batch over all processes.
        train, val, images, length, fewest: See ``QuestionData``.
        questions: File of a subset's questions, in ``root``; ``{subset}`` stands for its name.
        annotations: File of a subset's annotations.
        image_subsets: Subsets that have a folder of images; by default all that are named.
        options: Further options of ``QuestionData``.
    """

    def __init__(
        self,
        root: Path | str = "data/vqa2",
        batch_size: int = 64,
        train: str | list[str] = "train2014",
        val: str | None = "val2014",
        images: str = "{subset}",
        questions: str = "v2_OpenEnded_mscoco_{subset}_questions.json",
        annotations: str = "v2_mscoco_{subset}_annotations.json",
        image_subsets: list[str] | None = None,
        length: int = 14,
        fewest: int = 9,
        **options: Any,
    ) -> None:
        super().__init__(root, batch_size, train=train, val=val, images=images, length=length, fewest=fewest, **options)
        self.question_file, self.annotation_file = questions, annotations
        self.image_subsets = image_subsets

    @override
    def default_train_transforms(self) -> list[Transform]:
        return [A.Resize(448, 448, interpolation=cv2.INTER_LINEAR)]

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return self.default_train_transforms()

    @override
    def read(self, subset: str, answered: bool) -> list[Question]:
        annotations = self.root / self.annotation_file.format(subset=subset)
        return vqa_questions(
            self.root / self.question_file.format(subset=subset),
            annotations if answered or annotations.is_file() else None,
            self.leave_out_records,
        )

    @override
    def key(self, subset: str, number: int) -> Hashable:
        return number

    @override
    def folders(self) -> list[str]:
        return super().folders() if self.image_subsets is None else self.image_subsets


class CLEVR(QuestionData):
    """CLEVR: questions with one answer about scenes of simple bodies.

    A subset has a file of questions and a folder of images or features, and its images are known by a number of their
    own. An answer is right if it is the one of the file; kinds of questions are those of the last step of their
    programs.

    Args:
        root: Folder of the data set.
        batch_size: Questions of one batch over all processes.
        train, val, images, length: See ``QuestionData``.
        questions: File of a subset's questions, in ``root``; ``{subset}`` stands for its name.
        options: Further options of ``QuestionData``.
    """

    def __init__(
        self,
        root: Path | str = "data/CLEVR_v1.0",
        batch_size: int = 64,
        train: str | list[str] = "train",
        val: str | None = "val",
        images: str = "images/{subset}",
        questions: str = "questions/CLEVR_{subset}_questions.json",
        length: int = 43,
        **options: Any,
    ) -> None:
        super().__init__(root, batch_size, train=train, val=val, images=images, length=length, fewest=1, **options)
        self.question_file = questions

    @override
    def default_train_transforms(self) -> list[Transform]:
        return [A.Resize(224, 224, interpolation=cv2.INTER_CUBIC)]

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return self.default_train_transforms()

    @override
    def read(self, subset: str, answered: bool) -> list[Question]:
        return clevr_questions(
            self.root / self.question_file.format(subset=subset),
            self.leave_out_records,
        )

    @override
    def key(self, subset: str, number: int) -> Hashable:
        return subset, number
