"""Training samples that are the same in every epoch, and which transform it is that they are not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeAlias

import albumentations as A

from datamodules.errors import OptionError
from datamodules.transforms.pipeline import Augmentation, Pipeline

Applied: TypeAlias = A.BasicTransform | A.BaseCompose


class _Noting:
    """A generator that notes that something was drawn from it."""

    def __init__(self, generator: Any, drawn: list[str], name: str) -> None:
        self._generator, self._drawn, self._name = generator, drawn, name

    def __getattr__(self, attribute: str) -> Any:
        # Copying and pickling ask for what is not there yet.
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        self._drawn.append(self._name)
        return getattr(self._generator, attribute)


class Undrawn:
    """A pipeline whose transforms draw nothing: what it makes of a sample is the same in every epoch.

    That is seen on each sample, for some transforms draw only where an image is large enough.

    Args:
        pipeline: What a data module does to its training samples.

    Raises:
        OptionError: It is not a list of transforms of one image each, such as several views are not.
    """

    def __init__(self, pipeline: Augmentation) -> None:
        if not isinstance(pipeline, Pipeline):
            raise OptionError(f"its training images differ from epoch to epoch: {type(pipeline).__name__} draws them")
        # A training's own pipeline notes nothing.
        self.pipeline = copy.deepcopy(pipeline)
        self._drawn: list[str] = []
        first = [] if self.pipeline.resizing is None else [self.pipeline.resizing.transform]
        for transform in (*first, *_applied(self.pipeline.compose)):
            name = type(transform).__name__
            transform.random_generator = _Noting(transform.random_generator, self._drawn, name)
            transform.py_random = _Noting(transform.py_random, self._drawn, name)

    def __call__(self, sample: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """What the pipeline makes of a sample.

        Raises:
            OptionError: A transform draws.
        """
        made = self.pipeline(sample, epoch, index)
        if self._drawn:
            raise OptionError(
                f"its training images differ from epoch to epoch: the transform {self._drawn[0]} is drawn anew"
            )
        return made


def _applied(composed: A.BaseCompose) -> Iterator[Applied]:
    """All transforms of a list, and the choices among some, but no lists that are always applied whole."""
    if not (type(composed) in (A.Compose, A.Sequential) and composed.p == 1):
        yield composed
    for transform in composed.transforms:
        if isinstance(transform, A.BaseCompose):
            yield from _applied(transform)
        else:
            yield transform
