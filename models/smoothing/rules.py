"""Rules by which the weights of a teacher follow those of its student.

With a keep probability p, a momentum m and a draw r, uniform in [0, 1), of each unit of the weights: a unit with
r < p stays as it is, and every other one takes the step T <- m T + (1 - m) S.

| rule | p | m |
|---|---|---|
| moving average | 0 | m |
| spatial ensemble (SE) | p | 0: renewed units are copies of the student's |
| spatial-temporal smoothing (STS) | p | m |

Reference: "Spatial Ensemble: a Novel Model Smoothing Mechanism for Student-Teacher Framework", arXiv 2110.01253.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def effective_momentum(keep: float, momentum: float) -> float:
    """Momentum of the moving average that a rule is in the mean over its draws: 1 - (1 - p)(1 - m).

    Args:
        keep: p.
        momentum: m.
    """
    return 1.0 - (1.0 - keep) * (1.0 - momentum)


def renewed(draws: Tensor, keep: float | Tensor) -> Tensor:
    """Which units take a step: those whose draw is not below their keep probability.

    Args:
        draws: r of each unit, in [0, 1).
        keep: p of all, or of each.

    Returns:
        Boolean, of the shape of `draws`.
    """
    return draws >= keep


@torch.no_grad()
def moving_average(teacher: Sequence[Tensor], student: Sequence[Tensor], momentum: float) -> None:
    """Moves all weights of a teacher, in place: T <- m T + (1 - m) S.

    Args:
        teacher, student: tensors of the same shapes, one for one.
        momentum: m.
    """
    if not teacher or momentum == 1.0:
        return
    if momentum == 0.0:
        torch._foreach_copy_(list(teacher), list(student))
    else:
        torch._foreach_lerp_(list(teacher), list(student), 1.0 - momentum)


@torch.no_grad()
def spatial_ensemble(
    teacher: Sequence[Tensor], student: Sequence[Tensor], chosen: Sequence[bool] | Sequence[Tensor]
) -> None:
    """Overwrites the chosen units of a teacher with the student's, in place.

    Args:
        teacher, student: tensors of the same shapes, one for one.
        chosen: as in `spatial_temporal`.
    """
    spatial_temporal(teacher, student, chosen, 0.0)


@torch.no_grad()
def spatial_temporal(
    teacher: Sequence[Tensor], student: Sequence[Tensor], chosen: Sequence[bool] | Sequence[Tensor], momentum: float
) -> None:
    """Moves the chosen units of a teacher, in place: T <- m T + (1 - m) S.

    Args:
        teacher, student: tensors of the same shapes, one for one.
        chosen: of each tensor whether it is, or which parts of it are, booleans or zeros and ones that broadcast to it.
            Zeros and ones of the tensor's own type are used up: they become the shares by which it moves.
        momentum: m.
    """
    parts = [each for each in chosen if isinstance(each, Tensor)]
    if parts:
        shares = [part.to(tensor.dtype) for part, tensor in zip(parts, teacher, strict=True)]
        # In place, for there may be as many as weights.
        if momentum:
            torch._foreach_mul_(shares, 1.0 - momentum)
        torch._foreach_lerp_(list(teacher), list(student), shares)
    else:
        those = [i for i, whole in enumerate(chosen) if whole]
        moving_average([teacher[i] for i in those], [student[i] for i in those], momentum)
