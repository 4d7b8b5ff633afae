"""CTAugment's rates: how well images are recognised after each strength of each operation.

Reference: "ReMixMatch", arXiv 1911.09785, section 3.3, as FixMatch's published code has it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recognition(logits: Tensor, labels: Tensor) -> Tensor:
    """How near the answers are to the labels, 1 - |p - y| / 2 summed over the classes: the probability of the label.

    Args:
        logits: [B, K].
        labels: int64 [B].

    Returns:
        [B], from 0 to 1.
    """
    return logits.float().softmax(-1).gather(1, labels[:, None])[:, 0]


def moved_rates(rates: Tensor, bins: Tensor, values: Tensor, decay: float) -> Tensor:
    """Rates after one step towards a value for each use of a bin, one use after another: r <- d r + (1 - d) v.

    Args:
        rates: [N].
        bins: Those that each sample used, in order, int64 [B, P]; -1 for none.
        values: Of each sample, [B].
        decay: Share of a rate that stays, d.

    Returns:
        [N].
    """
    used = bins.flatten() == torch.arange(len(rates), device=rates.device)[:, None]
    uses = used.int()
    later = uses.flip(1).cumsum(1).flip(1) - uses
    steps = used * ((1 - decay) * decay ** later.to(rates.dtype))
    return rates * decay ** uses.sum(1).to(rates.dtype) + steps @ values.to(rates.dtype).repeat_interleave(
        bins.shape[1]
    )
