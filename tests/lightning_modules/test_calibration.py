"""Confidence against accuracy, on pixels whose confidence is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_modules.calibration import BINS, calibration
from lightning_modules.calibration import confidence_counts as counted_with
from lightning_modules.segmentation_losses import VOID


def logits_of(confidence: Tensor) -> Tensor:
    """Two classes, of which the first has this probability."""
    return torch.stack([confidence.log(), (1 - confidence).log()])[None]


def confidence_counts(logits: Tensor, label: Tensor, threshold: float | None = None) -> Tensor:
    return counted_with(logits, logits[0].argmax(0), label, threshold)


def test_error_is_that_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = 0.501 + 0.498 * torch.rand(2, 30, 40, generator=generator)
    label = (torch.rand(2, 30, 40, generator=generator) < 0.3).long()
    label[:, :3] = VOID
    found = calibration(sum(confidence_counts(logits_of(c), y, 0.9) for c, y in zip(confidence, label, strict=True)))
    valid = label != VOID
    sure, right = confidence[valid].double(), (label == 0)[valid].double()
    bins = (sure * BINS).long()
    error = 0.0
    for k in range(BINS):
        inside = bins == k
        if inside.any():
            error += inside.double().mean() * (right[inside].mean() - sure[inside].mean()).abs()
            assert found.accuracy[k].item() == pytest.approx(right[inside].mean().item())
            assert found.confidence[k].item() == pytest.approx(sure[inside].mean().item(), abs=1e-5)
        else:
            assert math.isnan(found.accuracy[k])
    assert found.error == pytest.approx(float(error), abs=1e-5)
    assert found.share.sum().item() == pytest.approx(1)
    assert found.sure_share == pytest.approx((sure > 0.9).double().mean().item())
    assert found.sure_accuracy == pytest.approx(right[sure > 0.9].mean().item())


def test_certain_and_right_is_no_error() -> None:
    logits = torch.tensor([50.0, -50.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    found = calibration(confidence_counts(logits, torch.zeros(4, 4, dtype=torch.uint8)))
    assert found.error == 0
    assert found.share[-1] == 1
    assert math.isnan(found.sure_share)
    assert math.isnan(found.sure_accuracy)


def test_nothing_is_sure_enough() -> None:
    predicted = torch.zeros(4, 4, dtype=torch.uint8)
    found = calibration(confidence_counts(logits_of(torch.full((4, 4), 0.6)), predicted, 0.9))
    assert found.sure_share == 0
    assert math.isnan(found.sure_accuracy)
    assert found.error == pytest.approx(0.4)
