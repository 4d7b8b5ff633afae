"""A linear classifier on features: what is in them for whoever draws straight lines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Penalties on the squared weights to choose from, and the part of the samples that chooses.
DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_CHOOSING = 5
_STEPS = 100


def logistic_regression(features: Tensor, labels: Tensor, num_classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """The linear classifier of least mean cross-entropy plus `decay / 2` times the squared weights, by L-BFGS.

    Args:
        features: [N, C].
        labels: Classes, int64 [N].
        num_classes: Classes, K.
        decay: Penalty; biases have none.

    Returns:
        Weights [K, C] and biases [K].
    """
    # An evaluation has no gradients, not even of what is made in it.
    with torch.inference_mode(False), torch.enable_grad():
        features, labels = features.clone(), labels.clone()
        weight = features.new_zeros(num_classes, features.shape[1]).requires_grad_()
        bias = features.new_zeros(num_classes).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=_STEPS, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(features, weight, bias), labels) + 0.5 * decay * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return weight.detach(), bias.detach()


@torch.no_grad()
def linear_logits(features: Tensor, bank: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Logits of features by a logistic regression on those of known class.

    Each channel is standardised over the known ones. Of `DECAYS`, the penalty is the one with which four fifths of the
    known samples tell the last fifth best; then all of them are learnt from. Nothing is augmented and the network stays
    as it is, so that features are computed once. The papers' linear evaluations train with crops, for many epochs, and
    come out higher.

    Args:
        features: Those to classify, [n, C].
        bank: Those of known class, [N, C].
        labels: Their classes, int64 [N].
        num_classes: Classes, K.

    Returns:
        [n, K].
    """
    mean, deviation = bank.mean(0), bank.std(0, correction=0)
    scale = 1 / torch.where(deviation > 0, deviation, 1)
    known, asked = (bank - mean) * scale, (features - mean) * scale
    choosing = torch.arange(len(known), device=known.device) % _CHOOSING == 0
    right = []
    for decay in DECAYS:
        weight, bias = logistic_regression(known[~choosing], labels[~choosing], num_classes, decay)
        right.append((F.linear(known[choosing], weight, bias).argmax(1) == labels[choosing]).sum())
    best = DECAYS[int(torch.stack(right).argmax())]
    return F.linear(asked, *logistic_regression(known, labels, num_classes, best))
