"""Questions and what is seen, as samples and as batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from typing_extensions import override

from datamodules.answers import KnownAnswers
from datamodules.collation import stack
from datamodules.errors import DataError
from datamodules.questions import Vocabulary
from datamodules.transforms.pipeline import Pipeline, Transform


class QuestionPipeline(Pipeline):
    """Transforms an image where there is one, and turns words and answers into numbers.

    Args:
        transforms: Of the image.
        seed: Run's seed.
        vocabulary: Words by number.
        known: Answers by number.
        length: Words of a question that are kept.
        asked: What is asked of samples without a question.
        judged: Whether samples say how right each answer is.
    """

    def __init__(
        self,
        transforms: list[Transform],
        seed: int,
        vocabulary: Vocabulary,
        known: KnownAnswers,
        length: int,
        asked: str = "",
        judged: bool = False,
    ) -> None:
        super().__init__(transforms, seed)
        self.vocabulary, self.known, self.length, self.asked, self.judged = vocabulary, known, length, asked, judged

    @override
    def __call__(self, sample: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """A sample of a ``Questions``: the fields of a batch, see ``QuestionData``."""
        made: dict[str, Any] = {"question": self.vocabulary.encode(sample.get("question", self.asked), self.length)}
        if "image" in sample:
            made["image"] = super().__call__({"image": sample["image"]}, epoch, index)["image"]
        else:
            made["features"] = sample["features"]
        made |= {field: sample[field] for field in ("answer_type", "question_type") if field in sample}
        if humans := sample.get("humans"):
            made["counts"], made["people"] = self.known.counts(humans), len(humans)
            if self.judged:
                made["scores"] = self.known.scores(humans)
        return made


def joined(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch; smaller grids, or fewer regions, are filled up by zeros behind their ends.

    Raises:
        DataError: Features of several numbers of channels, or grids beside regions.
    """
    features = [sample["features"] for sample in samples if "features" in sample]
    rest = [{key: value for key, value in sample.items() if key != "features"} for sample in samples]
    batch = stack(rest)
    if features:
        if len({(each.ndim, each.shape[-1]) for each in features}) > 1:
            shapes = sorted({each.shape for each in features})
            raise DataError(f"Features of one batch do not fit each other: {', '.join(map(str, shapes[:3]))} ...")
        most = np.max([each.shape for each in features], 0)
        filled = np.zeros((len(features), *most), np.float32)
        for target, each in zip(filled, features, strict=True):
            target[tuple(map(slice, each.shape))] = each
        batch["features"] = torch.from_numpy(filled)
    return batch
