"""What in the labels of a data set can hardly be meant, said before a training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_NAMED = 10


def remarks_on_classes(split: str, images: np.ndarray, names: Sequence[str], labelled: str) -> list[str]:
    """What there is to say of the classes of a split.

    Args:
        split: ``train``, ``val`` or ``test``.
        images: Images that each class is in, int64 [K].
        names: Class names.
        labelled: What images have of a class, such as ``image``, ``pixel`` or ``object``.

    Returns:
        A sentence for each thing that is odd.
    """
    found = []
    if len(none := np.flatnonzero(images == 0)):
        consequence = "cannot be learnt" if split == "train" else "cannot be evaluated"
        found.append(
            f"{len(none)} of {len(names)} classes have no {labelled} in the {split} split and {consequence}: "
            f"{named(none, names)}."
        )
    if split == "train" and len(one := np.flatnonzero(images == 1)):
        found.append(f"{len(one)} of {len(names)} classes are in one training image only: {named(one, names)}.")
    return found


def named(classes: np.ndarray, names: Sequence[str]) -> str:
    """The names of some classes, or of the first of them."""
    listed = ", ".join(names[int(k)] for k in classes[:MAX_NAMED])
    return listed + (f" and {len(classes) - MAX_NAMED} more" if len(classes) > MAX_NAMED else "")
