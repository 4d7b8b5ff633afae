"""A line is drawn where scikit-learn draws it, and as stiff as the samples ask for."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from models.self_supervised.linear_probe import linear_logits, logistic_regression


@pytest.fixture
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes on 150 points of six numbers, which overlap."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % 3
    centres = torch.randn(3, 6, generator=generator)
    return centres[labels] + torch.randn(150, 6, generator=generator), labels


@pytest.mark.parametrize("decay", [1e-3, 1e-1])
def test_it_is_scikit_learns(decay: float, samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = samples
    weight, bias = logistic_regression(features.double(), labels, 3, decay)
    theirs = LogisticRegression(C=1 / (decay * len(labels)), tol=1e-9, max_iter=1000).fit(features.double(), labels)
    ours = (features.double() @ weight.T + bias).softmax(1)
    torch.testing.assert_close(ours, torch.from_numpy(theirs.predict_proba(features.double())), atol=1e-5, rtol=1e-4)


def test_units_of_the_features_say_nothing(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = samples
    # A channel that is the same for all samples has no deviation.
    features = torch.cat([features, torch.full((150, 1), 7.0)], 1)
    scale = torch.tensor([1e-3, 1e3, 1.0, 10.0, 0.1, 1.0, 1.0])
    known, asked = features[:120], features[120:]
    logits = linear_logits(asked, known, labels[:120], 3)
    assert logits.isfinite().all()
    assert (logits.argmax(1) == labels[120:]).float().mean() > 0.6
    torch.testing.assert_close(
        linear_logits(asked * scale, known * scale, labels[:120], 3).softmax(1), logits.softmax(1), atol=2e-3, rtol=0
    )


def test_it_works_where_there_are_no_gradients(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = samples
    outside = linear_logits(features, features, labels, 3)
    with torch.inference_mode():
        inside = linear_logits(features * 1, features * 1, labels * 1, 3)
    assert torch.equal(inside, outside)
    assert not outside.requires_grad
