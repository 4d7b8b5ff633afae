"""Evaluation of segmenters: padded images, windows of a large image, several scales and mirrored images.

Reference: the evaluations of MMSegmentation 1.2 and of HRNet-Semantic-Segmentation (branch pytorch-v1.1).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from models.layers.resize import resize
from models.mistakes import Mistake

# Images [B, 3, H, W] to scores [B, C, H, W] of each exit, cheapest first.
Predict = Callable[[Tensor], list[Tensor]]
Average = Literal["softmax", "exp_logits"]
# What a network that does not state its `size_divisor` takes images in multiples of.
DIVISOR = 32


def padded(images: Tensor, divisor: int = DIVISOR) -> Tensor:
    """Images with zeros at the bottom and at the right, so that both sides are multiples of a number.

    Args:
        images: [B, C, H, W].
        divisor: The number, which networks state as `size_divisor`.
    """
    return F.pad(images, (0, -images.shape[-1] % divisor, 0, -images.shape[-2] % divisor))


def unpadded(logits: Tensor, size: Sequence[int], divisor: int = DIVISOR) -> Tensor:
    """What a network says of padded images, at the size that they had before.

    Args:
        logits: [B, C, h, w] of any resolution.
        size: Height and width before padding.
        divisor: What they were padded to multiples of.

    Returns:
        [B, C, *size], float32.
    """
    height, width = size
    return resize(logits.float(), (height + -height % divisor, width + -width % divisor))[..., :height, :width]


def windows(size: Sequence[int], crop: Sequence[int], stride: Sequence[int]) -> list[tuple[slice, slice]]:
    """Rows and columns of the windows that cover an image, from top left to bottom right.

    max(H - h + s - 1, 0) // s + 1 windows along a side; one that would end outside is shifted back inside.

    Args:
        size: H, W of the image.
        crop: h, w of a window; cut to the image where that is smaller.
        stride: Steps from one window to the next, down and to the right.

    Raises:
        Mistake: A crop or stride that is not positive.
    """
    if min(*crop, *stride) < 1:
        raise Mistake(f"windows need a positive crop and stride, not {tuple(crop)} and {tuple(stride)}")

    def along(length: int, window: int, step: int) -> list[slice]:
        ends = [min(i * step + window, length) for i in range(max(length - window + step - 1, 0) // step + 1)]
        return [slice(max(end - window, 0), end) for end in ends]

    rows, columns = (along(*sides) for sides in zip(size, crop, stride, strict=True))
    return [(row, column) for row in rows for column in columns]


def sliding_window(predict: Predict, images: Tensor, crop: Sequence[int], stride: Sequence[int]) -> list[Tensor]:
    """Scores of an image from overlapping windows: the mean over the windows that a pixel is in.

    Args:
        predict: Run on each window.
        images: [B, 3, H, W].
        crop, stride: See `windows`.

    Returns:
        [B, C, H, W] of each exit.
    """
    height, width = images.shape[-2:]
    totals: list[Tensor] = []
    count = images.new_zeros(height, width)
    for row, column in windows((height, width), crop, stride):
        count[row, column] += 1
        for exit, scores in enumerate(predict(images[..., row, column])):
            if exit == len(totals):
                totals.append(scores.new_zeros(*scores.shape[:2], height, width))
            totals[exit][..., row, column] += scores
    return [total / count.to(total.dtype) for total in totals]


def multi_scale(
    predict: Predict,
    images: Tensor,
    scales: Sequence[float],
    flip: bool = True,
    average: Average = "softmax",
    base: int | None = None,
    crop: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
) -> list[Tensor]:
    """Scores of an image from resized and mirrored ones.

    Args:
        predict: Logits of a resized image or window.
        images: [B, 3, H, W], normalised.
        scales: Long sides to resize to, as multiples of `base`.
        flip: Whether each scale is run mirrored, too.
        average: `softmax`, as MMSegmentation: probabilities are averaged over scales and mirrored images. `exp_logits`,
            as HRNet for its Cityscapes tables: logits are averaged over mirrored images, their exponentials over
            windows, and added up over scales.
        base: Long side of an image of scale 1 in pixels; by default the image's.
        crop: Windows of resized images, see `windows`; None for whole images. With `exp_logits`, images of scale 1 and
            less are whole.
        stride: Steps between windows; by default as large as the crop.

    Returns:
        [B, C, H, W] of each exit: of `softmax` probabilities, of `exp_logits` positive scores.
    """
    size = images.shape[-2:]
    published = average == "exp_logits"

    def in_windows(run: Predict, resized: Tensor, scale: float) -> list[Tensor]:
        if crop is None or (published and scale <= 1):
            return run(resized)
        return sliding_window(run, resized, crop, stride or crop)

    def mirrored(resized: Tensor) -> list[Tensor]:
        return [scores.flip(-1) for scores in predict(resized.flip(-1))]

    def exponential(window: Tensor) -> list[Tensor]:
        logits = predict(window)
        if flip:
            logits = [(one + other) / 2 for one, other in zip(logits, mirrored(window), strict=True)]
        return [each.float().exp() for each in logits]

    totals: list[Tensor] = []
    for scale in scales:
        resized = resize(images, _scaled(size, scale, base))
        if published:
            views = [[resize(each, size) for each in in_windows(exponential, resized, scale)]]
        else:
            views = [
                [resize(each.float(), size).softmax(1) for each in in_windows(run, resized, scale)]
                for run in ((predict, mirrored) if flip else (predict,))
            ]
        for view in views:
            totals = [sum_ + each for sum_, each in zip(totals, view, strict=True)] if totals else view
    return totals if published else [total / (len(scales) * (1 + flip)) for total in totals]


def _scaled(size: Sequence[int], scale: float, base: int | None) -> tuple[int, int]:
    """Height and width whose longer one is `base * scale`, both to the nearest pixel."""
    longest = max(size)
    target = int((base or longest) * scale + 0.5)
    height, width = (int(side * target / longest + 0.5) for side in size)
    return height, width
