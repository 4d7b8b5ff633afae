"""Images that look alike: a perceptual hash of each, and a closer look at those whose hashes are near."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

# Bits that hashes of the same picture may differ in: what another compression, or another size, changes.
NEAR = 3
# So many bits of a hash are compared at once: of two near ones, at least one such part is the same.
PART, PARTS = 16, 4
# Side of the pictures that are then compared, and their mean difference, of 255.
SIDE, ALIKE = 16, 4.0
# Of blank pictures and the like, which have all of their bits in common, so many are compared with each.
MOST = 50


def fingerprint(image: np.ndarray) -> tuple[int, np.ndarray]:
    """A hash of 64 bits (whether a cell is brighter than the one to its right), and a small picture.

    Args:
        image: uint8 [H,W,3].

    Returns:
        The hash, and uint8 [16,16,3].
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
    bits = (grey[:, 1:] > grey[:, :-1]).reshape(-1)
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return int("".join("1" if bit else "0" for bit in bits), 2), small


def alike(hashes: Sequence[int], pictures: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of images that look alike.

    Args:
        hashes: Of each image.
        pictures: The small picture of each.

    Returns:
        Positions of both, the smaller first, ascending.
    """
    found: set[tuple[int, int]] = set()
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position, value in enumerate(hashes):
        for part in range(PARTS):
            bucket = buckets[part, value >> (PART * part) & (1 << PART) - 1]
            for other in bucket[-MOST:]:
                if (value ^ hashes[other]).bit_count() <= NEAR and (other, position) not in found:
                    difference = np.abs(pictures[position].astype(np.int16) - pictures[other]).mean()
                    if difference <= ALIKE:
                        found.add((other, position))
            bucket.append(position)
    return sorted(found)
