"""Outcomes of exits, and the exits found the slow way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from models.anytime import (
    Outcomes,
)


def naive_exits(sure: np.ndarray, thresholds: list[float]) -> list[int]:
    exits = range(len(sure))
    return [next((k for k in exits if sure[k, n] >= thresholds[k]), len(sure) - 1) for n in range(sure.shape[1])]


def outcomes(samples: int = 200, classes: int = 10, exits: int = 4, seed: int = 0, **kwargs: Any) -> Outcomes:
    """Exits of rising quality: the later, the more of the truth is in the logits."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (samples,), generator=generator)
    truth = nn.functional.one_hot(target, classes) * torch.rand(samples, 1, generator=generator) * 3
    noise = torch.randn(exits, samples, classes, generator=generator)
    logits = noise + truth * torch.linspace(0.6, 1.6, exits)[:, None, None]
    return Outcomes.from_logits(logits, target, **kwargs)
