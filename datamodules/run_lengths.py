"""COCO's compressed run-length codes, checked as arrays: drawing a broken one reads beyond its memory."""

from __future__ import annotations

import numpy as np

# Characters from '0' on hold five bits of a number, and a sixth that says that it goes on.
FIRST, BITS, GOES_ON, NEGATIVE = 48, 5, 32, 16
# Of 35 bits and a sign, which is more than any image's pixels need.
MAX_CHARACTERS = 7
BLOCK = 1 << 22


def coded_pixels(codes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How many pixels each code describes.

    From the fourth run on, a code holds the difference to the last but one.

    Args:
        codes: All codes one after the other, uint8 [m].
        ends: Where each ends, after a 0, int64 [n+1].

    Returns:
        Sum of the runs, int64 [n]; 0 for an empty code and -1 for one that is damaged.
    """
    pixels = np.zeros(len(ends) - 1, np.int64)
    first = 0
    while first < len(pixels):
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + BLOCK, side="right")) - 1)
        pixels[first:last] = _pixels(codes[ends[first] : ends[last]], ends[first : last + 1] - ends[first])
        first = last
    return pixels


def _pixels(codes: np.ndarray, ends: np.ndarray) -> np.ndarray:
    pixels, filled = np.zeros(len(ends) - 1, np.int64), np.diff(ends) > 0
    if not len(codes):
        return pixels
    values = codes.astype(np.int64) - FIRST
    code_of = np.repeat(np.arange(len(pixels)), np.diff(ends))
    wrong = (values < 0) | (values >= 2 * GOES_ON)
    stops = values & GOES_ON == 0
    # The end of a code is the end of a number, which then is not whole.
    lasts = ends[1:][filled] - 1
    wrong[lasts] |= ~stops[lasts]
    stops[lasts] = True
    stop = np.flatnonzero(stops)
    start = np.append(0, stop[:-1] + 1)
    place = np.arange(len(values)) - np.repeat(start, stop - start + 1)
    wrong |= place >= MAX_CHARACTERS
    place = place.clip(max=MAX_CHARACTERS)
    numbers = np.add.reduceat((values & (GOES_ON - 1)) << (BITS * place), start)
    numbers -= np.where(values[stop] & NEGATIVE, 1 << (BITS * (place[stop] + 1)), 0)
    of = code_of[stop]
    # Position of each number in its code, and of the first of its code among all.
    first = np.searchsorted(of, of)
    position = np.arange(len(of)) - first
    runs = numbers.copy()
    for parity in (0, 1):
        chain = np.flatnonzero((position % 2 == parity) & (position > 0))
        totals = np.cumsum(numbers[chain])
        begins = np.searchsorted(of[chain], of[chain])
        runs[chain] = totals - np.append(0, totals)[begins]
    pixels[filled] = np.add.reduceat(runs, np.flatnonzero(position == 0))
    pixels[of[runs < 0]] = -1
    pixels[code_of[wrong]] = -1
    return pixels
