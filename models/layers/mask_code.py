"""Masks as the low frequencies of their discrete cosine transform.

Reference: "SOLQ: Segmenting Objects by Learning Queries", NeurIPS 2021, arXiv 2106.02351.
"""

import math

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from models.layers.kernel_mixture import full_precision
from models.mistakes import Mistake


class MaskCode(nn.Module):
    """Binary masks of S x S pixels as V coefficients, C = T B T', kept in zig-zag order, and back.

    T is the orthonormal DCT-II, T[k, n] = c_k cos(pi (n + 1/2) k / S). Only the rows of T that the V frequencies use
    are kept, so that either direction is two small matrix products for any number of masks. Runs in float32 under
    autocast too. The module has no parameters and no state.

    Args:
        num_coefficients: V.
        size: S, in pixels.

    Raises:
        Mistake: V is not from 1 to S * S.
    """

    basis: Tensor
    places: Tensor

    def __init__(self, num_coefficients: int = 256, size: int = 128) -> None:
        super().__init__()
        if size < 1 or not 1 <= num_coefficients <= size * size:
            raise Mistake(
                f"masks of {size} x {size} pixels have codes of 1 to {size * size} coefficients, not {num_coefficients}"
            )
        self.num_coefficients, self.size = num_coefficients, size
        frequencies = zigzag(size, num_coefficients)
        # So many antidiagonals hold the code; rows and columns of the spectrum beyond them are zero.
        self.used = min(size, math.ceil((math.sqrt(8 * num_coefficients + 1) - 1) / 2))
        self.register_buffer("basis", cosines(self.used, size), persistent=False)
        self.register_buffer("places", frequencies @ torch.tensor([self.used, 1]), persistent=False)

    def crop(self, masks: Tensor, boxes: Tensor) -> Tensor:
        """Each mask [n, h, w] inside its box [n, 4], as bool [n, S, S]; see `crop`."""
        return crop(masks, boxes, self.size)

    def encode(self, masks: Tensor) -> Tensor:
        """Bool or float masks [n, S, S] to coefficients [n, V]; the first one is the area divided by S."""
        with full_precision(masks):
            spectrum = self.basis @ masks.to(self.basis.dtype) @ self.basis.T
            return spectrum.flatten(1)[:, self.places]

    def decode(self, vectors: Tensor) -> Tensor:
        """Coefficients [n, V] to maps [n, S, S] of any real values."""
        with full_precision(vectors):
            vectors = vectors.to(self.basis.dtype)
            spectrum = vectors.new_zeros(vectors.shape[0], self.used * self.used)
            spectrum = spectrum.index_copy(1, self.places, vectors).unflatten(1, (self.used, self.used))
            return self.basis.T @ spectrum @ self.basis

    def masks(self, vectors: Tensor) -> Tensor:
        """Coefficients [n, V] to bool masks [n, S, S]: above the middle of the smallest and largest value of each map.

        So a mask does not change with the scale of a prediction. A constant map is an empty mask.
        """
        maps = self.decode(vectors)
        low, high = maps.flatten(1).aminmax(dim=1)
        return maps > ((low + high) / 2)[:, None, None]

    def extra_repr(self) -> str:
        """The sizes, for `print`."""
        return f"num_coefficients={self.num_coefficients}, size={self.size}"


def crop(masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Each mask inside its box, by RoIAlign to size x size and a threshold of one half.

    Args:
        masks: bool [n, h, w]. RoIAlign takes what lies beyond the last row and column for a repetition of these; to
            agree with the published targets, pad the masks to the size of the batch.
        boxes: [n, 4] xyxy in pixels of the masks.
        size: height and width of what comes out.

    Returns:
        bool [n, size, size].
    """
    images = torch.arange(len(masks), device=boxes.device, dtype=torch.float32)
    regions = torch.cat([images[:, None], boxes.float()], 1)
    return roi_align(masks[:, None].float(), regions, size, aligned=True)[:, 0] >= 0.5


def mask_iou(masks: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of bool masks [n, S, S], pair by pair: [n]. Two empty ones are equal."""
    intersection, union = (op(masks, others).sum((1, 2)) for op in (torch.logical_and, torch.logical_or))
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def zigzag(size: int, count: int) -> Tensor:
    """The first frequencies of a square spectrum in zig-zag order: by antidiagonals, of alternating direction.

    On antidiagonal s the row rises where s is odd and falls where s is even.

    Args:
        size: rows and columns of the spectrum.
        count: how many frequencies.

    Returns:
        int64 [count, 2], row and column.
    """
    axis = torch.arange(size)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    diagonals = rows + columns
    within = torch.where(diagonals % 2 == 1, rows, -rows)
    order = (diagonals * 2 * size + within).flatten().argsort()[:count]
    return torch.stack([order // size, order % size], 1)


def cosines(frequencies: int, size: int) -> Tensor:
    """The first rows of the orthonormal DCT-II of length `size`, float32 [frequencies, size]."""
    k, n = torch.arange(frequencies, dtype=torch.float64), torch.arange(size, dtype=torch.float64)
    rows = math.sqrt(2 / size) * torch.cos(math.pi / size * k[:, None] * (n + 0.5))
    rows[0] = math.sqrt(1 / size)
    return rows.float()
