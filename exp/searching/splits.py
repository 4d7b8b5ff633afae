"""The images that candidates are judged on, apart from those of the training, and those that the best are tested on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves

from datamodules import DataModule
from datamodules.parts import divided, part_dataloader
from datamodules.splits import Subset
from exp.usage import UsageError

# Batches of the search are kept in memory as long as they need no more bytes.
_KEPT = 1 << 30


class Part:
    """Some images of a split, as batches that can be gone over again and again.

    Args:
        data: Has the split.
        split: `val` or `test`.
        indices: Positions in it.
    """

    def __init__(self, data: DataModule, split: Literal["val", "test"], indices: np.ndarray) -> None:
        self.split, self.indices = split, indices
        self._data = data
        self._kept: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Any] | None = []
        size = 0
        for batch in part_dataloader(self._data, self.split, self.indices):
            size += sum(each.nbytes for each in tree_leaves(batch) if isinstance(each, Tensor))
            kept = [*kept, batch] if kept is not None and size <= _KEPT else None
            yield batch
        self._kept = kept


def parts(data: Any, samples: int | None) -> tuple[Part, Part, str]:
    """What candidates are judged on, and what the best are tested on: no image of the training, and none in both.

    That is validation and test images. Of data without test images, whose validation images are what results are
    reported on, candidates are judged on one half of these and the best are tested on the other.

    Args:
        data: The data module.
        samples: Judge candidates on so many images only.

    Returns:
        Both, and what they are, in one line.

    Raises:
        UsageError: There are no validation images, or fewer than asked for.
    """
    name = type(data).__name__
    if not isinstance(data, DataModule):
        raise UsageError(f"search needs a data module of datamodules, whose splits it can divide, not {name}")
    if not data.has("val"):
        raise UsageError(
            f"{name} holds out no validation images, and a search judges on images that the training has not seen: "
            "train with some held out (data.init_args.holdout)"
        )
    source = data.source("val")
    every = np.arange(len(source))
    if data.has("test"):
        judged, tested = every, Part(data, "test", np.arange(len(data.source("test"))))
        told = f"the best are tested on its {len(tested):,} test images"
    elif len(source) > 1:
        judged, rest = divided(source, (len(source) + 1) // 2)
        tested = Part(data, "val", rest)
        told = f"{name} has no test images, so the best are tested on the other {len(rest):,} of them"
    else:
        raise UsageError(f"{name} has one validation image and no test images, which cannot be divided")
    if samples is not None and samples > len(judged):
        raise UsageError(f"--samples {samples}: there are {len(judged):,} validation images to judge on")
    if samples is not None and samples < len(judged):
        judged = judged[divided(Subset(source, judged), samples)[0]]  # type: ignore[arg-type]
    return Part(data, "val", judged), tested, f"judged on {len(judged):,} validation images of {name}; {told}"
