"""The confusion matrix of a classifier: what it counts, and what counting takes with many classes."""

from __future__ import annotations

import torch
from torch import Tensor

from callbacks.reports.classification import MOST_CLASSES, Mistakes
from models.memory import PeakMemory


def outcomes(label: Tensor, predicted: Tensor, classes: int) -> dict[str, Tensor]:
    logits = torch.zeros(len(label), classes)
    logits[torch.arange(len(label)), predicted] = 1.0
    return {"logits": logits, "label": label, "losses": torch.ones(len(label)), "index": torch.arange(len(label))}


def test_the_matrix_counts_true_classes_by_predicted_ones() -> None:
    report = Mistakes()
    for label, predicted in (([0, 1, 1], [0, 2, 2]), ([2, 1], [0, 1])):
        report.keep({}, outcomes(torch.tensor(label), torch.tensor(predicted), 3))
    report.merge()
    assert report._counts is not None
    assert report._counts.tolist() == [[1, 0, 0], [0, 1, 2], [1, 0, 0]]


def test_a_batch_takes_no_further_matrix_however_many_classes() -> None:
    report = Mistakes()
    few = outcomes(torch.tensor([3, 5]), torch.tensor([3, 7]), MOST_CLASSES)
    report.keep({}, few)
    assert report._counts is not None
    matrix = report._counts.nbytes
    with PeakMemory([report._counts]) as memory:
        report.keep({}, few)
    assert memory.peak < 1.1 * matrix


def test_too_many_classes_have_no_matrix() -> None:
    report = Mistakes()
    report.keep({}, outcomes(torch.tensor([3]), torch.tensor([4]), MOST_CLASSES + 1))
    report.merge()
    assert report._counts is None
