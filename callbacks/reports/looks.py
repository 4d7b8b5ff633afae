"""Where a network looked to answer a question, and how far each of its layers did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.decisions import Decision


@dataclass(frozen=True)
class Look:
    """Of one question.

    Args:
        attention: How much of each cell was taken, [h,w]; None where no layer said it of a grid.
        spans: Shares of each span in each layer, [layers, spans].
        span_names: Names of the spans.
    """

    attention: np.ndarray | None
    spans: np.ndarray
    span_names: tuple[str, ...]


def span_mixtures(noted: Mapping[str, Decision]) -> dict[str, Decision]:
    """Mixtures of spans, by layer."""
    return {name: each for name, each in noted.items() if each.kind == "mixture" and each.option == "span"}


def looks(noted: Mapping[str, Decision], rows: Sequence[int]) -> list[Look]:
    """What layers noted for some samples of a batch.

    Args:
        noted: By the layer's name.
        rows: Positions in the batch.
    """
    maps = [each.values for each in noted.values() if each.kind == "attention" and each.values.ndim == 4]
    routed = list(span_mixtures(noted).values())
    names = routed[0].names if routed else ()
    shares = torch.stack([each.values for each in routed], 1).float().cpu().numpy() if routed else None
    # Several sums are shown as one.
    attention = maps[-1].float().mean(1).cpu().numpy() if maps else None
    return [
        Look(
            None if attention is None else attention[row],
            np.empty((0, 0)) if shares is None else shares[row],
            tuple(names),
        )
        for row in rows
    ]
