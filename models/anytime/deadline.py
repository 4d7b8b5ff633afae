"""Early exit by the clock: the last exit that is ready in time."""

import time
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from models.anytime.execution import each_exit
from models.mistakes import Mistake

# What is left of the slowest run when a faster one follows.
MEMORY = 0.9


class Deadline:
    """Runs the exits of a network for as long as the next one can be expected to be ready in time.

    An exit is expected to take as long as the slowest of its recent runs on images of that size. For a new size, the
    whole network runs twice first, to know.

    Args:
        seconds: Time from the image to the logits of the exit.
        wait: Waits until the device has done what it was given.

    Raises:
        Mistake: Seconds that are not positive.
    """

    def __init__(self, seconds: float, wait: Callable[[], None]) -> None:
        if not seconds > 0:
            raise Mistake(f"a deadline is a time above 0, not {seconds:g} seconds")
        self.seconds = seconds
        self._wait = wait
        self._expected: dict[tuple[int, ...], list[float]] = {}

    def run(self, network: nn.Module, images: Tensor) -> tuple[Tensor, int, float]:
        """The last exit that is ready in time; the first one if none is.

        Args:
            network: See `each_exit`.
            images: [B, 3, H, W].

        Returns:
            Its logits [B, C, h, w], its number, and the seconds that it took.
        """
        size = tuple(images.shape)
        if size not in self._expected:
            # The first run of a shape also pays for choosing kernels and reserving memory.
            self._measure(network, images)
            self._expected[size] = self._measure(network, images)
        expected = self._expected[size]
        self._wait()
        start = before = time.perf_counter()
        for exit, reached in enumerate(each_exit(network, images)):
            logits = reached
            self._wait()
            now = time.perf_counter()
            expected[exit] = max(now - before, MEMORY * expected[exit])
            before = now
            if exit + 1 == len(expected) or now - start + expected[exit + 1] > self.seconds:
                break
        return logits, exit, before - start

    def _measure(self, network: nn.Module, images: Tensor) -> list[float]:
        self._wait()
        times = [time.perf_counter()]
        for _ in each_exit(network, images):
            self._wait()
            times.append(time.perf_counter())
        return [after - before for before, after in pairwise(times)]
