"""How a segmenter looks at an image in evaluation, and what its exits make of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from models.mistakes import Mistake
from models.segmenters.inference import Average, windows


@dataclass
class SlidingWindow:
    """Evaluation by overlapping windows, see `models.segmenters.inference.sliding_window`.

    Args:
        crop: Height and width of a window, as a rule those that the network was trained on.
        stride: From one window to the next, down and to the right; two thirds of the crop are customary.

    Raises:
        Mistake: Numbers that are not positive.
    """

    crop: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self) -> None:
        windows(self.crop, self.crop, self.stride)


@dataclass
class MultiScale:
    """Evaluation by several sizes of an image, see `models.segmenters.inference.multi_scale`.

    Args:
        scales: Multiples of the image's sides.
        flip: Whether each is mirrored, too.
        average: `softmax` as MMSegmentation, or `exp_logits` as HRNet's Cityscapes tables.

    Raises:
        Mistake: No scale, one that is not positive, or an unknown average.
    """

    scales: list[float] = field(default_factory=lambda: [0.5, 0.75, 1.0, 1.25, 1.5, 1.75])
    flip: bool = True
    average: Average = "softmax"

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise Mistake(f"multi_scale needs scales above 0, not {self.scales}")
        if self.average not in ("softmax", "exp_logits"):
            raise Mistake(f"multi_scale: average must be one of softmax, exp_logits, not {self.average!r}")


@dataclass(frozen=True)
class ExitLook:
    """What one exit makes of an image.

    Args:
        predicted: Classes [h, w], uint8.
        confidence: Largest softmax probability of each pixel [h, w], float32.
        computed: Share of each pixel that the exit was computed at, float32 [h, w]; None for everything.
    """

    predicted: Tensor
    confidence: Tensor
    computed: Tensor | None
