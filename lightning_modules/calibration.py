"""How often an exit is right about the pixels that it is sure of.

An exit that skips pixels by their confidence is worth as much as its confidence is. The calibration error is that of
"On Calibration of Modern Neural Networks", arXiv 1706.04599, equation 3: the mean over the pixels of
`|accuracy - mean confidence|` of the bin that they are in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.segmentation_losses import VOID

# Of equal width, from 0 to 1.
BINS = 20


@dataclass(frozen=True)
class Calibration:
    """Of one exit over a whole split.

    Args:
        share: Share of the pixels whose confidence is in each bin, float64 [BINS].
        confidence: Its mean in each bin; NaN for an empty one.
        accuracy: Share of each bin's pixels that are right; NaN for an empty one.
        error: Expected calibration error.
        sure_share: Share of the pixels that the exit is sure enough of to skip them later; NaN without a threshold.
        sure_accuracy: Share of those that are right; NaN for none.
    """

    share: Tensor
    confidence: Tensor
    accuracy: Tensor
    error: float
    sure_share: float
    sure_accuracy: float


def confidence_counts(logits: Tensor, predicted: Tensor, label: Tensor, threshold: float | None = None) -> Tensor:
    """Counts that add up over images, exits being counted apart.

    Args:
        logits: [1, C, H, W].
        predicted: The likeliest classes [H, W].
        label: Classes [H, W]; pixels of label 255 do not count.
        threshold: Largest softmax probability above which the exit is sure of a pixel. None for no threshold.

    Returns:
        float64 [BINS + 1, 3], a row for each bin and one for the pixels above the threshold: how many, the sum of their
        confidence, and how many are right.
    """
    # As `models.anytime.confidence` defines it, over the second axis, where softmax is many times faster on a CPU.
    confidence = logits.float().softmax(1).amax(1)[0]
    valid = label != VOID
    confidence, right = confidence[valid].double(), (predicted == label)[valid].double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    rows = torch.stack(
        [torch.bincount(bins, weights, BINS) for weights in (torch.ones_like(right), confidence, right)], 1
    )
    if threshold is None:
        sure = torch.full_like(rows[:1], torch.nan)
    else:
        above = confidence > threshold
        sure = torch.stack([above.double(), confidence * above, right * above], 1).sum(0, keepdim=True)
    return torch.cat([rows, sure])


def calibration(counts: Tensor) -> Calibration:
    """What the counts of a split say.

    Args:
        counts: Sum of `confidence_counts`, [BINS + 1, 3].
    """
    bins, (sure, _, sure_right) = counts[:-1].cpu(), counts[-1].tolist()
    pixels, confidence, right = bins.unbind(1)
    total = pixels.sum().item()
    error = (right - confidence).abs().sum().item() / total
    accuracy = sure_right / sure if sure else torch.nan
    return Calibration(pixels / total, confidence / pixels, right / pixels, error, sure / total, accuracy)
