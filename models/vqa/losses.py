"""Losses of answers, summed over the batch as published: the learning rates of the recipes belong to sums."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Loss = Literal["bce", "ce", "kld", "mse"]


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target.flatten(), reduction="sum")


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(-1), target, reduction="sum")


def _binary(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum")


def _squares(logits: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(logits, target, reduction="sum")


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": _binary,
    "ce": _cross_entropy,
    "kld": _divergence,
    "mse": _squares,
}


def answer_loss(logits: Tensor, target: Tensor, kind: Loss = "bce") -> Tensor:
    """The loss of a batch, a scalar.

    Args:
        logits: [B, answers].
        target: How right each answer is, in [0, 1], [B, answers]; for `ce` the index of the right one, int64 [B] or
            [B, 1].
        kind: `bce`, binary cross entropy of each answer (VQA v2); `ce`, cross entropy (CLEVR); `kld`, divergence of
            softmax(logits) from targets that sum to 1; `mse`, squared distance.
    """
    return _LOSSES[kind](logits, target)
