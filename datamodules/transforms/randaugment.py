"""timm's RandAugment among albumentations transforms."""

from __future__ import annotations

import random
from typing import Any

import albumentations as A
import numpy as np
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import rand_augment_transform


class RandAugment(A.ImageOnlyTransform):
    """RandAugment (arXiv 1909.13719) as timm writes it, such as ``rand-m9-mstd0.5-inc1``.

    Args:
        policy: timm's configuration string.
        fill: RGB value of pixels that are moved in from outside.
        p: Probability of applying it to an image.

    Raises:
        ValueError: If the policy is not timm's.
    """

    def __init__(
        self, policy: str = "rand-m9-mstd0.5-inc1", fill: tuple[int, int, int] = (124, 116, 104), p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        if not policy.startswith("rand-"):
            raise ValueError(f"policy={policy!r} does not begin with 'rand-', as in 'rand-m9-mstd0.5-inc1'.")
        self.policy, self.fill = policy, tuple(fill)
        # Bicubic, as the published recipes; timm left to itself draws bilinear or bicubic for every operation.
        self._augment = rand_augment_transform(
            policy, {"img_mean": self.fill, "interpolation": Image.Resampling.BICUBIC}
        )
        for operation in self._augment.ops:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Augments one image, uint8 [H,W,3]."""
        # timm draws from the global generators. They are lent the sample's stream, so that the result is a function of
        # (seed, epoch, index), and are given back as they were.
        python_state, numpy_state = random.getstate(), np.random.get_state()
        random.seed(self.py_random.getrandbits(64))
        np.random.seed(self.py_random.getrandbits(32))
        try:
            return np.array(self._augment(Image.fromarray(img)))
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    # At full strength timm keeps no bit at all. Pillow made a black image of that until version 13 refused it.
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **options)
