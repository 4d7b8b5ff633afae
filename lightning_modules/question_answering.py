"""Visual question answering: any network that chooses among known answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.findings import Findings, gathered
from lightning_modules.optimization import MakeOptimizer
from lightning_modules.task import Batch, Task
from models.decisions import forget, noted
from models.mistakes import Mistake
from models.vqa.losses import answer_loss

Loss = Literal["bce", "ce", "kld"]
# How right an answer is that so many people gave, in the soft targets of VQA v2.
SOFT = (0.0, 0.3, 0.6, 0.9, 1.0)
# Kinds of questions that have a metric of their own; of more, a report has them.
MOST_LOGGED = 12


@dataclass(frozen=True)
class AnswerFindings(Findings):
    """What an evaluation found, ordered by the questions' positions in the split; on the host.

    Args:
        metrics: Loss and accuracy, and accuracies by the kinds of answers and of questions.
        index: Positions, int64 [n].
        answer: The answer given to each, by number, int64 [n].
        score: How right it is, float32 [n]; NaN where nobody says.
        answer_type: Kind of the answer of each, int64 [n].
        question_type: Kind of each, int64 [n].
    """

    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    answer: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    score: Tensor = field(default_factory=lambda: torch.empty(0))
    answer_type: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    question_type: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))


class QuestionAnswering(Task):
    """Trains a network that answers questions about images, and evaluates it as VQA v2's evaluation does.

    Batches are those of `datamodules.question_answering.QuestionData`: `question` [B, T], and `image` [B, 3, H, W] or
    `features` [B, h, w, C] or [B, N, C]; `counts` [B, A] of `people` [B] who gave each answer, and in evaluation
    `scores` [B, A], how right each is. `accuracy` is the mean score of the likeliest answers, and the same by each kind
    of answer (`accuracy_yes_no`), and by each kind of question where there are 12 of them or fewer. Of questions
    without answers there are only the answers given.

    With `sum`, as published, the loss of an optimiser step is the sum over all its questions, on however many processes
    and in however many accumulated batches they are. The loss of an evaluation is a mean in any case.

    The embedding of words starts from the data's `vectors`, if it has some and no weights are given.

    Args:
        network: `(questions, images or features) -> logits [B, A]`, with `num_answers` and an `embedding`.
        optimizer: By default Adam as published for TRAR.
        loss: `bce`, binary cross entropy of each answer with its soft target (0.3 for each person, at most 1); `ce`,
            cross entropy with the answer that most people gave; `kld`, divergence from the shares of people.
        reduction: `sum` or `mean` over the questions of a step.
        options: See `Task`.

    Raises:
        Mistake: A loss or reduction that is none; when training or an evaluation begins, a network that has another
            number of answers than the data, or too few words.
    """

    monitor = "val/accuracy"
    monitor_mode = "max"
    shown = ("accuracy",)

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer = torch.optim.Adam,
        loss: Loss = "bce",
        reduction: Literal["sum", "mean"] = "sum",
        **options: Any,
    ) -> None:
        super().__init__(network, optimizer=optimizer, **options)
        if loss not in get_args(Loss) or reduction not in ("sum", "mean"):
            raise Mistake(f"loss={loss!r} is bce, ce or kld, and reduction={reduction!r} is sum or mean")
        self.loss, self.reduction = loss, reduction
        # Of questions to train on, whether the word embedding has got its weights from a file.
        self._given_words = False
        embedding: Any = network.embedding
        embedding.register_load_state_dict_post_hook(self._note_words)
        # Whether prediction makes features of images and no answers; set by `predict --features`.
        self.writes_cells = False
        self.register_buffer("soft", torch.tensor(SOFT), persistent=False)
        self._losses: list[Tensor] = []
        self._rows: list[dict[str, Tensor]] = []

    def _note_words(self, *_: Any) -> None:
        self._given_words = True

    @override
    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        seen = self.in_memory_order(batch["image"]) if "image" in batch else batch["features"]
        return batch["question"], seen

    @override
    def forward(self, questions: Tensor, seen: Tensor) -> Tensor:  # type: ignore[override]
        """Logits [B, A] of questions [B, T] and what is seen."""
        return self.network(questions, seen)

    # Words and answers.

    def check_numbers(self) -> None:
        """Checks that the network has an output for each answer of the data, and a vector for each word.

        Raises:
            Mistake: It has not.
        """
        words, answers = self.data.vocabulary, self.data.known
        network: Any = self.network
        if network.num_answers != len(answers):
            raise Mistake(
                f"the network has {network.num_answers} answers but the data has {len(answers)}: set num_answers of "
                f"{type(self.network).__name__} or of what answers in it to {len(answers)}"
            )
        if network.embedding.num_embeddings < len(words):
            raise Mistake(
                f"the network has vectors of {network.embedding.num_embeddings} words but the data has {len(words)} "
                f"words: set its vocabulary_size to {len(words)} or more"
            )

    @override
    def on_fit_start(self) -> None:
        """Checks words and answers; gives words their vectors, where the training starts afresh."""
        super().on_fit_start()
        self.check_numbers()
        if self._given_words:
            return
        embedding: nn.Embedding = self.network.embedding  # type: ignore[assignment]
        for number, vector in self.data.embeddings().items():
            if len(vector) != embedding.embedding_dim:
                raise Mistake(
                    f"the vectors of words have {len(vector)} numbers, the network's {embedding.embedding_dim}: set "
                    f"its word_dim to {len(vector)}"
                )
            with torch.no_grad():
                embedding.weight[number] = torch.from_numpy(vector).to(embedding.weight)

    # Training.

    def target(self, batch: Batch) -> Tensor:
        """What the loss compares logits with: [B, A], or for `ce` int64 [B], -100 where no answer is known."""
        counts = batch["counts"]
        if self.loss == "ce":
            return torch.where(counts.sum(1) > 0, counts.argmax(1), -100)
        if self.loss == "kld":
            return counts / batch["people"][:, None]
        # One answer alone is right altogether.
        soft = self.soft[counts.long().clamp(max=len(SOFT) - 1)]  # type: ignore[index]
        return torch.where(batch["people"][:, None] == 1, counts.to(soft.dtype), soft)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss, with penalties."""
        logits = self(*self.inputs(batch)).float()
        target, samples = self.target(batch), len(logits)
        loss = answer_loss(logits, target, self.loss)
        if self.reduction == "mean":
            loss = loss / samples
        else:
            # Gradients are averaged over processes and accumulated batches.
            loss = loss * (self.trainer.world_size * self.trainer.accumulate_grad_batches)
        found = batch["counts"].gather(1, logits.argmax(1, keepdim=True))
        right = (found / batch["people"][:, None].clamp(max=len(SOFT) - 1)).clamp(max=1).mean()
        return self.total_loss({self.loss: loss}, {"accuracy": right}, samples)

    # Evaluation.

    @override
    def start(self, split: str) -> None:
        self.check_numbers()
        self._losses, self._rows = [], []

    @override
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        """Counts a batch; returns `index`, `logits`, `answer` and, where there are answers, `score`."""
        logits = self(*self.inputs(batch)).float()
        answer = logits.argmax(1)
        row = {"index": batch["index"], "answer": answer} | {
            kind: batch[kind] for kind in ("answer_type", "question_type")
        }
        if "scores" in batch:
            row["score"] = batch["scores"].gather(1, answer[:, None]).squeeze(1)
            self._losses.append(answer_loss(logits, self.target(batch), self.loss))
        else:
            row["score"] = logits.new_full(answer.shape, torch.nan)
        self._rows.append(row)
        return row | {"logits": logits}

    @override
    def finish(self, split: str) -> AnswerFindings:
        own = {name: torch.cat([row[name] for row in self._rows]).cpu() for name in self._rows[0]} if self._rows else {}
        loss = torch.stack(self._losses).sum().double().cpu() if self._losses else torch.zeros(()).double()
        given = [each for each in gathered((own, loss)) if each[0]]
        rows = {name: torch.cat([each[name] for each, _ in given]) for name in given[0][0]}
        rows = {name: values[rows["index"].argsort()] for name, values in rows.items()}
        metrics: dict[str, float | Tensor] = {}
        if not rows["score"].isnan().any():
            score = rows["score"].double()
            metrics["loss"] = float(sum(each for _, each in given)) / len(score)
            metrics["accuracy"] = score.mean().item()
            by_question = by_kind(score, rows["question_type"], self.data.question_types)
            if len(by_question) <= MOST_LOGGED:
                metrics |= {f"accuracy_{_plain(name)}": value for name, value in by_question.items()}
            by_answer = by_kind(score, rows["answer_type"], self.data.answer_types)
            metrics |= {f"accuracy_{_plain(name)}": value for name, value in by_answer.items()}
        return AnswerFindings(metrics, **rows)

    # Prediction.

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Probabilities of answers [B, A], what layers noted of their decisions, and the samples' indices [B].

        Answers that were trained with `bce` are right independently of each other; what their sigmoids say is divided
        by their sum where that is above 1.
        """
        if self.writes_cells:
            network: Any = self.network
            return {"index": batch["index"], "cells": network.cells(self.in_memory_order(batch["image"]))}
        forget(self.network)
        logits = self(*self.inputs(batch)).float()
        if self.loss == "bce":
            probabilities = logits.sigmoid()
            probabilities = probabilities / probabilities.sum(1, keepdim=True).clamp(min=1)
        else:
            probabilities = logits.softmax(1)
        return {"index": batch["index"], "probabilities": probabilities, "decisions": noted(self.network)}


def by_kind(score: Tensor, kind: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Mean score of each kind that there is, by name; a kind without a name is left out.

    Args:
        score: [n].
        kind: Of each, int64 [n].
        names: Of the kinds.
    """
    return {
        name: score[kind == number].mean().item()
        for number, name in enumerate(names)
        if name and bool((kind == number).any())
    }


def _plain(name: str) -> str:
    """A name of a kind as a metric has it."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")
