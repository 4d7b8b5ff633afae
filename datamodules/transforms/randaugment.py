"""timm's RandAugment and AutoAugment among albumentations transforms."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import albumentations as A
import numpy as np
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp, auto_augment_transform, rand_augment_transform
from typing_extensions import override

from datamodules.errors import OptionError

POLICIES = ("original", "originalr", "v0", "v0r", "3a")


class _Augment(A.ImageOnlyTransform):
    """Applies a transform of timm's with the sample's own random numbers."""

    def __init__(
        self,
        make: Callable[[str, dict[str, Any]], Any],
        policy: str,
        fill: tuple[int, int, int],
        p: float,
    ) -> None:
        super().__init__(p=p)
        self.policy, self.fill = policy, tuple(fill)
        # Bicubic, as the published recipes; timm left to itself draws bilinear or bicubic for every operation.
        self._augment = make(policy, {"img_mean": self.fill, "interpolation": Image.Resampling.BICUBIC})

    @override
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
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


class RandAugment(_Augment):
    """RandAugment (arXiv 1909.13719) as timm writes it, such as ``rand-m9-mstd0.5-inc1``.

    Args:
        policy: timm's configuration string.
        fill: RGB value of pixels that are moved in from outside.
        p: Probability of applying it to an image.

    Raises:
        OptionError: If the policy is not timm's.
    """

    def __init__(
        self, policy: str = "rand-m9-mstd0.5-inc1", fill: tuple[int, int, int] = (124, 116, 104), p: float = 1.0
    ) -> None:
        if not policy.startswith("rand-"):
            raise OptionError(f"policy={policy!r} does not begin with 'rand-', as in 'rand-m9-mstd0.5-inc1'.")
        super().__init__(rand_augment_transform, policy, fill, p)
        _mend(self._augment.ops)


class AutoAugment(_Augment):
    """AutoAugment (arXiv 1805.09501), in the policies that timm has.

    Args:
        policy: ``original`` is the paper's, ``v0`` that of EfficientNet's training code.
        fill: RGB value of pixels that are moved in from outside.
        p: Probability of applying it to an image.

    Raises:
        OptionError: If timm has no such policy.
    """

    def __init__(self, policy: str = "original", fill: tuple[int, int, int] = (124, 116, 104), p: float = 1.0) -> None:
        if policy not in POLICIES:
            raise OptionError(f"policy={policy!r} is none of {', '.join(POLICIES)}.")
        super().__init__(auto_augment_transform, policy, fill, p)
        for operations in self._augment.policy:
            _mend(operations)


def _mend(operations: Iterable[AugmentOp]) -> None:
    for operation in operations:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    # At full strength timm keeps no bit at all. Pillow made a black image of that until version 13 refused it.
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **options)
