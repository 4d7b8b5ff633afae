"""How sure an exit is of its prediction.

Every criterion is larger for a surer exit, so that one rule serves all: a sample leaves where confidence >= threshold.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.mistakes import Mistake


def max_prob(logits: Tensor) -> Tensor:
    """Largest softmax probability."""
    return logits.softmax(-1).amax(-1)


def margin(logits: Tensor) -> Tensor:
    """Difference of the two largest softmax probabilities."""
    top = logits.softmax(-1).topk(2, -1).values
    return top[..., 0] - top[..., 1]


def neg_entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax in nats, with a minus: sum of p ln p."""
    return -torch.special.entr(logits.softmax(-1)).sum(-1)


def normalised(logits: Tensor) -> Tensor:
    """1 - entropy / ln K: from 0 for equal probabilities to 1 for certainty."""
    return 1 + neg_entropy(logits) / math.log(logits.shape[-1])


def random(logits: Tensor) -> Tensor:
    """Uniform in [0, 1), whatever the logits: the baseline that any criterion has to beat at equal cost."""
    return torch.rand(logits.shape[:-1], device=logits.device)


CRITERIA: dict[str, Callable[[Tensor], Tensor]] = {
    "max_prob": max_prob,
    "margin": margin,
    "entropy": neg_entropy,
    "normalised": normalised,
    "random": random,
}


def confidence(logits: Tensor, criterion: str = "max_prob") -> Tensor:
    """How sure an exit is of each sample; larger is surer.

    Args:
        logits: [..., K], K >= 2, of any precision.
        criterion: A name in `CRITERIA`.

    Returns:
        [...], float32.

    Raises:
        Mistake: No such criterion, or a single class.
    """
    check_criterion(criterion)
    if logits.shape[-1] < 2:
        raise Mistake(f"confidence needs at least 2 classes, not {logits.shape[-1]}")
    # Not in the precision that the network ran in: thresholds are compared to the last digit of float32.
    with torch.autocast(logits.device.type, enabled=False):
        return CRITERIA[criterion](logits.float())


def check_criterion(criterion: str) -> None:
    """Refuse an unknown criterion.

    Raises:
        Mistake: With the known ones.
    """
    if criterion not in CRITERIA:
        raise Mistake(f"no confidence criterion is called {criterion!r}; there are: {', '.join(CRITERIA)}")
