"""What a code of masks by cosines is compared with: as many numbers as a coarse grid, or as principal components.

Reference: "SOLQ: Segmenting Objects by Learning Queries", NeurIPS 2021, arXiv 2106.02351.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.kernel_mixture import full_precision
from models.mistakes import Mistake


class GridCode(nn.Module):
    """Binary masks of S x S pixels as the mean of each cell of a grid, and back by bilinear interpolation.

    Args:
        num_coefficients: cells, the square of a number.
        size: S, in pixels.

    Raises:
        Mistake: The cells make no square, or one that is larger than the mask.
    """

    def __init__(self, num_coefficients: int = 256, size: int = 128) -> None:
        super().__init__()
        self.side = isqrt(max(num_coefficients, 0))
        if self.side**2 != num_coefficients or not 1 <= self.side <= size:
            raise Mistake(
                f"a grid over {size} x {size} pixels has 1, 4, 9, ... or {size * size} cells, not {num_coefficients}"
            )
        self.num_coefficients, self.size = num_coefficients, size

    def encode(self, masks: Tensor) -> Tensor:
        """Bool masks [n, S, S] to cell means [n, V]."""
        return F.adaptive_avg_pool2d(masks[:, None].float(), self.side).flatten(1)

    def masks(self, vectors: Tensor) -> Tensor:
        """Cell means [n, V] to bool masks [n, S, S]: where the interpolation is at least one half."""
        cells = vectors.float().unflatten(1, (1, self.side, self.side))
        return F.interpolate(cells, (self.size, self.size), mode="bilinear", align_corners=False)[:, 0] >= 0.5


class PrincipalCode(nn.Module):
    """Binary masks of S x S pixels as coordinates along their principal components, and back.

    The components come from `fit` and are part of the state. Runs in float32 under autocast too.

    Args:
        num_coefficients: V.
        size: S, in pixels.

    Raises:
        Mistake: V is not from 1 to S * S.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, num_coefficients: int = 256, size: int = 128) -> None:
        super().__init__()
        if size < 1 or not 1 <= num_coefficients <= size * size:
            raise Mistake(f"masks of {size} x {size} pixels have 1 to {size * size} components, not {num_coefficients}")
        self.num_coefficients, self.size = num_coefficients, size
        self.register_buffer("mean", torch.zeros(size * size))
        self.register_buffer("components", torch.zeros(num_coefficients, size * size))

    @torch.no_grad()
    def fit(self, masks: Tensor) -> None:
        """Takes the components of greatest variance of bool masks [n, S, S].

        Raises:
            Mistake: No more masks than components.
        """
        if len(masks) <= self.num_coefficients:
            raise Mistake(
                f"{self.num_coefficients} principal components need more masks than the {len(masks)} there are: "
                "lower num_coefficients or give more training images"
            )
        with full_precision(self.mean):
            flat = masks.flatten(1).to(self.mean.dtype)
            self.mean.copy_(flat.mean(0))
            # The small side's eigenvectors: of n masks, which are far fewer than pixels, there are n.
            centred = flat - self.mean
            _, vectors = torch.linalg.eigh((centred @ centred.T).double())
            main = vectors[:, -self.num_coefficients :].to(centred.dtype)
            self.components.copy_(F.normalize(main.T @ centred, dim=1).flip(0))

    def encode(self, masks: Tensor) -> Tensor:
        """Bool masks [n, S, S] to coordinates [n, V], of the greatest variance first."""
        with full_precision(masks):
            return (masks.flatten(1).to(self.mean.dtype) - self.mean) @ self.components.T

    def masks(self, vectors: Tensor) -> Tensor:
        """Coordinates [n, V] to bool masks [n, S, S]: where the sum of components is at least one half."""
        with full_precision(vectors):
            maps = vectors.to(self.mean.dtype) @ self.components + self.mean
            return (maps >= 0.5).unflatten(1, (self.size, self.size))
