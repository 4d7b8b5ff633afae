"""A process that is silent, or comes less far than the others, is told by its rank."""

from __future__ import annotations

import time
from collections.abc import Callable

from callbacks import liveness
from callbacks.liveness import Liveness, Pulse


class Store(dict[str, bytes]):
    """Stands for torch's store of keys and values."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


def until(condition: Callable[[], object]) -> None:
    """Waits for the threads that speak."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_silence_is_counted_from_the_last_word() -> None:
    store = Store()
    pulse = Pulse(lambda: store, 0, 3)
    for _ in range(9):
        pulse.tick()
    # Who has never spoken may still have to find the way.
    assert pulse.silent(5) == []
    store["1"], store["2"] = b"1 0", b"1 0"
    until(lambda: len(pulse._said) == 2)
    for _ in range(3):
        pulse.tick()
    store["2"] = b"2 0"
    until(lambda: pulse._said[2] == b"2 0")
    for _ in range(3):
        pulse.tick()
    assert pulse.silent(5 * liveness.INTERVAL) == [1]
    assert pulse.silent(2 * liveness.INTERVAL) == [1, 2]
    assert pulse.silent(6 * liveness.INTERVAL) == []
    store["2"] = liveness.LEFT
    until(lambda: 2 not in pulse._silence)
    assert pulse.silent(0) == [1]
    # The others listen to the first.
    until(lambda: "0" in store)
    other = Pulse(lambda: store, 2, 3)
    until(lambda: other._said)
    for _ in range(4):
        other.tick()
    assert other.silent(100) == []
    assert set(other._silence) == {0}
    pulse.leave()
    until(lambda: not other._silence)


def test_who_has_come_less_far_is_missed() -> None:
    store = Store({"1": b"7 12", "2": b"9 11"})
    watch = Liveness(0.5, lambda: False, print)
    assert watch.missed() == "another process did not come to where the others waited within 0.5 minutes"
    watch._pulse = Pulse(lambda: store, 0, 3)
    until(lambda: len(watch._pulse._said) == 2)
    for _ in range(12):
        watch.on_train_batch_start()
    assert watch.missed().startswith("rank 2 did not come to where the others waited")
    watch.on_train_batch_end()
    assert watch.missed().startswith("ranks 1, 2 did")
    watch._pulse = Pulse(lambda: store, 0, 2)
    until(lambda: watch._pulse._said)
    # Of two, it is the other.
    assert watch.missed().startswith("rank 1 did")
