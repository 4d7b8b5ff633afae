"""Cross-entropies of dense prediction, over all labelled pixels or the hard ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.resize import resize
from models.mistakes import Mistake
from models.processes import process_mean

VOID = 255
Normalisation = Literal["weights", "pixels"]


@dataclass
class Ohem:
    """Online hard example mining: pixels whose true class has a low probability are what is trained on.

    With q the `min_kept`-th smallest of these probabilities, counted from 0, pixels of less than max(threshold, q) are
    kept.

    Args:
        threshold: Probability of the true class from which a pixel is easy.
        min_kept: Pixels that are kept at least, unless fewer are labelled or several are as probable as q.
        definition: `batch`, as HRNet: `min_kept` pixels of the batch on a device, and the mean is over the kept pixels.
            `image`, as MMSegmentation: `min_kept` times the images of the batch, and the mean is over all pixels, void
            ones included.

    Raises:
        Mistake: A threshold outside of [0, 1], a negative number, or an unknown definition.
    """

    threshold: float = 0.9
    min_kept: int = 131_072
    definition: Literal["batch", "image"] = "batch"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or self.min_kept < 0:
            raise Mistake(
                f"Ohem: threshold={self.threshold} is a probability, and min_kept={self.min_kept} pixels, 0 or more"
            )
        if self.definition not in ("batch", "image"):
            raise Mistake(f"Ohem: definition must be one of batch, image, not {self.definition!r}")


def cross_entropy(
    logits: Tensor,
    label: Tensor,
    class_weights: Tensor | None = None,
    normalisation: Normalisation = "weights",
    over_processes: bool = False,
) -> Tensor:
    """Cross-entropy of the labelled pixels.

    Args:
        logits: [B, C, h, w]; resized to the label.
        label: [B, H, W], classes, and 255 where a pixel has none.
        class_weights: [C] of the true class; None for 1.
        normalisation: What the weighted sum is divided by. `weights`, as HRNet: the sum of the pixels' weights.
            `pixels`, the default of MMSegmentation: the number of all pixels, void ones included.
        over_processes: Whether the sum of weights is the mean over all processes, which train on equal shares of a
            batch with more or fewer void pixels each; then every process must call this.

    Returns:
        Scalar, float32; 0 where every pixel is void.
    """
    losses, label = _pixel_losses(logits, label, class_weights)
    if normalisation == "pixels":
        return losses.mean()
    weights = _weights(label, class_weights).sum()
    if over_processes:
        weights = process_mean(weights, weights.device)
    return losses.sum() / weights.clamp(min=torch.finfo(torch.float32).tiny)


def ohem_cross_entropy(logits: Tensor, label: Tensor, ohem: Ohem, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the hard pixels, without waiting for the device to say how many there are.

    Class weights count in the losses, and not in what their sum is divided by.

    Args:
        logits: [B, C, h, w]; resized to the label.
        label: [B, H, W], classes, and 255 where a pixel has none.
        ohem: Which pixels are hard.
        class_weights: [C] of the true class; None for 1.

    Returns:
        Scalar, float32; 0 where no pixel is kept.
    """
    logits = resize(logits.float(), label.shape[-2:])
    losses, label = _pixel_losses(logits, label, class_weights)
    valid = label != VOID
    with torch.no_grad():
        true = logits.softmax(1).gather(1, label.where(valid, 0)[:, None]).squeeze(1)
        smallest = true.where(valid, torch.inf).flatten().sort().values
        wanted = ohem.min_kept * (1 if ohem.definition == "batch" else len(label))
        place = (valid.sum() - 1).clamp(min=0, max=wanted)
        kept = valid & (true < smallest.gather(0, place[None]).clamp(min=ohem.threshold))
        pixels = kept.sum().clamp(min=1) if ohem.definition == "batch" else label.numel()
    return losses.where(kept, 0).sum() / pixels


def _pixel_losses(logits: Tensor, label: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted losses [B, H, W], zero at void pixels, and the label as int64."""
    label = label.long()
    logits = resize(logits.float(), label.shape[-2:])
    losses = F.cross_entropy(logits, label, class_weights, ignore_index=VOID, reduction="none")
    return losses, label


def _weights(label: Tensor, class_weights: Tensor | None) -> Tensor:
    valid = label != VOID
    if class_weights is None:
        return valid.float()
    return class_weights[label.where(valid, 0)] * valid
