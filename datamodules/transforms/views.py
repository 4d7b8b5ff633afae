"""Several views of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datamodules.decoding import Encoded
from datamodules.ordering import derived_seed
from datamodules.transforms.pipeline import Pipeline, Transform


class Views:
    """Makes several views of each image, every one with transforms and random numbers of its own.

    Args:
        transforms: albumentations transforms of each view, applied in order; views may end in different sizes.
        seed: Run's seed.
    """

    def __init__(self, transforms: Sequence[Sequence[Transform]], seed: int = 0) -> None:
        self.pipelines = [Pipeline(own, derived_seed(seed, f"view {view}")) for view, own in enumerate(transforms)]

    def __call__(self, sample: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """Decodes one sample and makes its views.

        Args:
            sample: ``image`` (``Encoded`` or array [H,W,3] uint8) and other fields.
            epoch: Epoch, from 0.
            index: Position in the split.

        Returns:
            The sample with ``image`` a list of views, [H',W',3], and the other fields.

        Raises:
            DataError: If the image cannot be decoded.
        """
        image = sample["image"].decode() if isinstance(sample["image"], Encoded) else sample["image"]
        # A transform may write to what it is given.
        views = (pipeline({"image": image.copy()}, epoch, index) for pipeline in self.pipelines)
        return sample | {"image": [view["image"] for view in views]}
