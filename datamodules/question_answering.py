"""Questions about images: what the layouts of VQA v2 and CLEVR share."""

from __future__ import annotations

import contextlib
import json
import pickle
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from datamodules.answers import KnownAnswers, normalised
from datamodules.base import DataModule
from datamodules.errors import DataError, OptionError
from datamodules.finding import shown
from datamodules.question_files import Question
from datamodules.question_pipeline import QuestionPipeline, joined
from datamodules.questions import PAD, UNKNOWN, WHOLE, Vocabulary, words_of
from datamodules.remarks import named
from datamodules.seen import FeatureFiles, FeaturePaths, ImagesInFolders, Seen
from datamodules.splits import Source
from datamodules.texts import Texts
from datamodules.transforms.pipeline import Augmentation
from datamodules.word_vectors import word_vectors

LONGEST = 1000


class Questions:
    """The questions of a split.

    Args:
        questions: In order.
        seen: What there is to be seen; an image may have many questions.
        places: Where in it the image of each question is.
        answer_types: Names of the kinds of answers.
        question_types: Names of the kinds of questions.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        seen: Seen,
        places: Sequence[int],
        answer_types: Sequence[str],
        question_types: Sequence[str],
    ) -> None:
        self.seen = seen
        self.numbers = torch.tensor([question.number for question in questions])
        self.places = torch.tensor(places)
        self.texts = Texts(question.text for question in questions)
        self._humans = Texts(json.dumps(question.humans) if question.humans else "" for question in questions)
        self.types = {
            field: torch.tensor([numbers[getattr(question, field)] for question in questions])
            for field, names in (("answer_type", answer_types), ("question_type", question_types))
            for numbers in [{name: number for number, name in enumerate(names)}]
        }

    def __len__(self) -> int:
        return len(self.numbers)

    def humans(self, index: int) -> list[str]:
        """What people answered; empty where nobody says."""
        text = self._humans[index]
        return json.loads(text) if text else []

    def load(self, index: int) -> dict[str, Any]:
        """One sample: ``question``, ``humans``, ``answer_type``, ``question_type``, and ``image`` or ``features``."""
        types = {field: int(numbers[index]) for field, numbers in self.types.items()}
        seen = self.seen.load(int(self.places[index]))
        return {"question": self.texts[index], "humans": self.humans(index), **types, **seen}

    def name(self, index: int) -> str:
        """The file, and which question is meant."""
        return f"{self.seen.name(int(self.places[index]))} (question {int(self.numbers[index])})"


class QuestionData(DataModule):
    """Questions about images, which a network sees as pictures or as features from files.

    Batch: ``question`` int64 [B,T], words by number; ``image`` [B,3,H,W], or ``features`` float32 [B,h,w,C] or [B,N,C],
    zero where there is nothing; ``answer_type`` and ``question_type`` int64 [B], by their names in the attributes;
    ``index`` int64 [B]. Where there are answers, also ``people`` int64 [B] and ``counts`` uint8 [B,A], how many of
    them gave each; in evaluation ``scores`` float32 [B,A], how right each is. Prediction batches have the
    question ``asked``.

    Words and answers are numbered by the questions to train and validate on, unless files say them. They are in every
    checkpoint, and what is restored from one has its words and answers, whatever the data here are.

    Args:
        root: Folder of the data set.
        batch_size: Questions of one batch over all processes.
        train: Subsets to train on, one or several.
        val: Subset to validate on; None for no validation.
        images: Folder of a subset's pictures, in ``root``; ``{subset}`` stands for its name.
        length: Words of a question that are kept.
        fewest: Questions that an answer has to be the most frequent one of, to be known.
        test: Subset to test on, with or without answers; None for none.
        features: Folder of a subset's features, see ``seen.FeatureFiles``; None to see the pictures.
        feature_shape: Height, width and channels of the features, or regions and channels; None for any grids.
        words: Where words have their numbers from: a checkpoint, or a JSON file of words in their order.
        answers: The same of answers: a checkpoint, a JSON file of answers in their order, or of a list whose first
            member has numbers by answer.
        vectors: Vectors that word embeddings start from, see ``word_vectors``; None to learn them from nothing.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``.

    Attributes:
        answer_types: Names of the kinds of answers.
        question_types: Names of the kinds of questions.
        asked: Question of prediction batches.
    """

    collate = staticmethod(joined)

    def __init__(
        self,
        root: Path | str,
        batch_size: int,
        train: str | list[str],
        val: str | None,
        images: str,
        length: int,
        fewest: int,
        test: str | None = None,
        features: str | None = None,
        feature_shape: list[int] | None = None,
        words: str | None = None,
        answers: str | None = None,
        vectors: str | None = None,
        num_workers: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(batch_size, num_workers=num_workers, **options)
        self.root = Path(root)
        self.subsets = {
            "train": [train] if isinstance(train, str) else list(train),
            "val": [val] if val else [],
            "test": [test] if test else [],
        }
        if not self.subsets["train"] or length < 1 or fewest < 1:
            raise OptionError(f"train={train} names a subset, and length={length} and fewest={fewest} are 1 or more.")
        if feature_shape is not None and (len(feature_shape) not in (2, 3) or min(feature_shape) < 1):
            raise OptionError(
                f"feature_shape={feature_shape} is [height, width, channels], or [regions, channels], each at least 1."
            )
        if feature_shape is not None and features is None:
            raise OptionError("feature_shape is that of features: give their folder by features, or leave it out.")
        self.images, self.features, self.feature_shape = images, features, feature_shape
        self.length, self.fewest = length, fewest
        self.files = {"words": words, "answers": answers}
        self.vectors = None if vectors is None else Path(vectors)
        self.vocabulary = Vocabulary((PAD, UNKNOWN, WHOLE))
        self.known = KnownAnswers(())
        self.answer_types: list[str] = []
        self.question_types: list[str] = []
        self.asked = ""

    # What a layout says.

    @abstractmethod
    def read(self, subset: str, answered: bool) -> list[Question]:
        """The questions of a subset.

        Args:
            subset: Its name.
            answered: Whether they have to have answers.
        """

    def leave_out_records(self, file: Path, problems: list[tuple[str, str]]) -> None:
        """Says which records of a file cannot be used; see ``leave_out``."""
        self.leave_out(f"{file}: {len(problems)} records cannot be used", problems, file=file)

    @abstractmethod
    def key(self, subset: str, number: int) -> Hashable:
        """What a question of a subset knows the image of a number by."""

    def folders(self) -> list[str]:
        """Names of the folders, by subset, in which the images of its questions may be."""
        return list(dict.fromkeys(name for names in self.subsets.values() for name in names))

    # What is the same for all.

    @override
    def open(self) -> dict[str, Source | None]:
        read = {
            split: [(name, self.read(name, answered=split != "test")) for name in names]
            for split, names in self.subsets.items()
        }
        everything = [question for split in read.values() for _, questions in split for question in questions]
        self.answer_types = sorted({question.answer_type for question in everything})
        self.question_types = sorted({question.question_type for question in everything})
        if not len(self.known):
            # Nothing has been restored.
            self._number_words([*read["train"], *read["val"]])
        seen = self._seen()
        return {split: self._source(parts, seen) if parts else None for split, parts in read.items()}

    def _number_words(self, parts: list[tuple[str, list[Question]]]) -> None:
        questions = [question for _, each in parts for question in each]
        given = {name: None if file is None else _listed(Path(file), name) for name, file in self.files.items()}
        if given["words"] is not None and given["words"][:3] != [PAD, UNKNOWN, WHOLE]:
            raise DataError(f"{self.files['words']}: the first words have to be {PAD}, {UNKNOWN} and {WHOLE}.")
        words = given["words"]
        self.vocabulary = Vocabulary(words) if words else Vocabulary.of(question.text for question in questions)
        if given["answers"]:
            self.known = KnownAnswers(list(dict.fromkeys(map(normalised, given["answers"]))))
        else:
            self.known = KnownAnswers.of((question.humans for question in questions if question.humans), self.fewest)
        if not len(self.known):
            raise DataError(
                f"No answer is the most frequent one of {self.fewest} questions or more in {self.root}. Lower fewest, "
                "or give a file of answers."
            )
        self.class_names = list(self.known.answers)

    def _seen(self) -> Seen:
        pattern = self.images if self.features is None else self.features
        folders = {name: self.root / pattern.format(subset=name) for name in self.folders()}
        if self.features is None:
            return ImagesInFolders(folders, self.key)
        return FeatureFiles(folders, self.key, self.feature_shape)

    def _source(self, parts: list[tuple[str, list[Question]]], seen: Seen) -> Questions:
        kept: list[Question] = []
        places: list[int] = []
        for name, questions in parts:
            problems = []
            for question in questions:
                place = seen.places.get(self.key(name, question.image))
                if place is None:
                    problems.append((f"question {question.number}", f"there is no image {question.image}"))
                    continue
                kept.append(question)
                places.append(place)
            self.leave_out(f"{self.root}, {name}: {len(problems)} questions are of images that are not there", problems)
        if not kept:
            raise DataError(
                f"{', '.join(name for name, _ in parts)}: none of the questions is of an image that is there."
            )
        return Questions(kept, seen, places, self.answer_types, self.question_types)

    def questions(self, split: str) -> Questions:
        """The questions of a split.

        Raises:
            DataError: If it has none.
        """
        source = self.source(split)
        if not isinstance(source, Questions):
            raise DataError(f"The {split} split has no questions.")
        return source

    @override
    def inspect(self) -> list[str]:
        source = self.questions("train")
        right = np.zeros(len(self.known), np.int64)
        unanswerable = 0
        for index in range(len(source)):
            counts = self.known.counts(source.humans(index))
            right += counts > 0
            unanswerable += not counts.any()
        if unanswerable == len(source):
            raise DataError("None of the training questions has an answer that is known: check the file of answers.")
        remarks = []
        if len(never := np.flatnonzero(right == 0)):
            remarks.append(
                f"{len(never)} of {len(right)} answers are right to no training question and cannot be learnt: "
                f"{named(never, self.known.answers)}."
            )
        if unanswerable:
            share = unanswerable / len(source)
            remarks.append(
                f"{unanswerable} of {len(source)} training questions ({share:.1%}) have no known answer and teach "
                "nothing but what is wrong. More answers are known with a lower fewest."
            )
        return remarks

    def unknown_words(self, question: str) -> list[str]:
        """Words of a question that have no number."""
        return [word for word in words_of(question) if word not in self.vocabulary.numbers]

    def embeddings(self) -> dict[int, np.ndarray]:
        """Vectors that words start from, float32 by the words' numbers; empty where they are learned from nothing.

        Raises:
            DataError: The file of vectors cannot be used.
        """
        if self.vectors is None:
            return {}
        found = word_vectors(self.vectors, self.vocabulary.words)
        return {self.vocabulary.numbers[word]: vector for word, vector in found.items()}

    @override
    def setup(self, stage: str) -> None:
        if stage == "predict" and self.features is not None:
            self._sources["predict"] = FeaturePaths(self.predict_paths, self.feature_shape)
            # As of images: prediction can do without the data set.
            with contextlib.suppress(DataError):
                self._open()
            return
        super().setup(stage)

    @override
    def pipeline_for(self, split: str) -> Augmentation:
        trains = split in self.streams()
        return QuestionPipeline(
            self.train_transforms if trains else self.eval_transforms,
            self.seed,
            self.vocabulary,
            self.known,
            self.length,
            self.asked,
            judged=not trains,
        )

    @override
    def example_sample(self, image: np.ndarray) -> dict[str, Any]:
        sample: dict[str, Any] = {"question": "what is this", "answer_type": 0, "question_type": 0}
        if self.features is None:
            return sample | {"image": image}
        return sample | {"features": np.ones(self.feature_shape or (8, 8, 2048), np.float32)}

    @override
    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return super().on_after_batch_transfer(batch, dataloader_idx) if "image" in batch else batch

    # What a checkpoint has of the data.

    @override
    def state_dict(self) -> dict[str, Any]:
        """Words and answers by number."""
        return {"words": list(self.vocabulary.words), "answers": list(self.known.answers)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the words and answers of a checkpoint.

        Raises:
            DataError: They are no lists of texts.
        """
        for name in ("words", "answers"):
            _check_list(state_dict.get(name), f"the checkpoint's {name}")
        self.vocabulary = Vocabulary(state_dict["words"])
        self.known = KnownAnswers(state_dict["answers"])
        self.class_names = list(self.known.answers)


def _listed(path: Path, name: str) -> list[str]:
    """A list of texts from a JSON file, or from what a checkpoint has of its data.

    Raises:
        DataError: There is none.
    """
    content: Any
    try:
        if path.suffix == ".ckpt":
            held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            states = [each for each in held.values() if isinstance(each, dict) and {"words", "answers"} <= each.keys()]
            content = states[0][name] if states else None
        else:
            content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, RuntimeError, AttributeError, pickle.UnpicklingError) as problem:
        reason = (str(problem).splitlines() or [""])[0]
        raise DataError(f"{path} cannot be read as a list of {name}: {reason}.") from problem
    if isinstance(content, list) and content and isinstance(content[0], dict):
        # As published, with a list the other way round behind it.
        numbers = content[0]
        content = sorted(numbers, key=numbers.__getitem__) if set(map(type, numbers.values())) == {int} else None
    _check_list(content, str(path))
    return content


def _check_list(content: Any, where: str) -> None:
    if not isinstance(content, list) or not content or not all(isinstance(each, str) for each in content):
        raise DataError(f"{where}: a list of texts is needed, and is not there.")
    if odd := next((each for each in content if len(each) > LONGEST or not each.isprintable()), None):
        raise DataError(f"{where}: {shown(odd[:50])} is no word or answer.")
    if len(set(content)) < len(content):
        raise DataError(f"{where}: a text is there twice.")
