"""Outlines of many objects at once: where they lie, whether they enclose something, whether they cross themselves."""

from __future__ import annotations

import numpy as np

BLOCK = 100_000


class Polygons:
    """What there is to say of the polygons of each annotation.

    Args:
        coordinates: x, y, x, y ... of all, float64 [m].
        ends: Where each polygon ends, after a 0, int64 [p+1].
        spans: Where the polygons of each annotation end, after a 0, int64 [n+1].

    Attributes:
        drawn: Which annotations have polygons, bool [n].
        low: Left and top end of each annotation's, float64 [n,2]; 0 without polygons.
        high: Right and bottom end.
        enclosing: How many of its polygons enclose something, int64 [n].
        crossing: How many cross themselves.
    """

    def __init__(self, coordinates: np.ndarray, ends: np.ndarray, spans: np.ndarray) -> None:
        self.coordinates, self.ends = coordinates, ends
        self.drawn = np.diff(spans) > 0
        self.low, self.high = np.zeros((len(spans) - 1, 2)), np.zeros((len(spans) - 1, 2))
        if self.drawn.any():
            starts = ends[spans[:-1][self.drawn]] // 2
            points = coordinates.reshape(-1, 2)
            self.low[self.drawn] = np.minimum.reduceat(points, starts)
            self.high[self.drawn] = np.maximum.reduceat(points, starts)
        areas, turns = self._areas_and_turns()
        self.enclosing, self.crossing = (
            np.diff(np.append(0, np.cumsum(each))[spans]) for each in (areas > 0, turns != 1)
        )

    def _areas_and_turns(self) -> tuple[np.ndarray, np.ndarray]:
        """Area of each polygon, and how often it turns around, float64 [p] each.

        A closed line that crosses itself an odd number of times does not turn by one full circle (Whitney's theorem);
        lines with a point twice in a row, or that go back the way they came, are not judged.
        """
        ends, coordinates = self.ends, self.coordinates
        areas, turns = np.zeros(len(ends) - 1), np.ones(len(ends) - 1)
        for first in range(0, len(areas), BLOCK):
            last = min(first + BLOCK, len(areas))
            points = coordinates[ends[first] : ends[last]].reshape(-1, 2)
            starts = (ends[first:last] - ends[first]) // 2
            after = np.arange(1, len(points) + 1)
            after[np.append(starts[1:], len(points)) - 1] = starts
            areas[first:last] = np.abs(np.add.reduceat(_cross(points, points[after]), starts)) / 2
            steps = points[after] - points
            angles = np.arctan2(_cross(steps, steps[after]), (steps * steps[after]).sum(1))
            unclear = (steps == 0).all(1) | (np.abs(angles) > np.pi - 1e-6)
            whole = np.rint(np.add.reduceat(angles, starts) / (2 * np.pi))
            turns[first:last] = np.where(np.logical_or.reduceat(unclear, starts), 1, np.abs(whole))
        return areas, turns


def _cross(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    return vectors[:, 0] * others[:, 1] - others[:, 0] * vectors[:, 1]
