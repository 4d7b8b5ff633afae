"""Which seeds a claim may use, and when it looks whether they have settled it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exp.claims.expectations import nearest

KEYS = ("first", "most", "block")


class SeedsError(ValueError):
    """What `seeds:` cannot mean.

    Args:
        message: what is wrong.
        key: the key of `seeds:` that it is about; empty for all of it.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Seeds:
    """The seeds of a claim.

    Args:
        listed: all that it may use, in the order in which they run.
        looks: after how many of them it looks, ascending; the last is all of them.
    """

    listed: list[int]
    looks: list[int]


def read_seeds(given: Any) -> Seeds:
    """The seeds of `seeds:`; a list has one look, `{first: 6, most: 16}` one at the first ones and after every block.

    Raises:
        SeedsError: it names none.
    """
    if isinstance(given, dict):
        return _blocks(given)
    if not isinstance(given, list) or not all(type(seed) is int and seed >= 0 for seed in given):
        raise SeedsError("'seeds' is a list of whole numbers, such as [0, 1, 2, 3, 4, 5], or {first: 6, most: 16}")
    if len(set(given)) < len(given):
        raise SeedsError("a seed is listed twice")
    return Seeds(given, [len(given)])


def _blocks(given: dict[Any, Any]) -> Seeds:
    for key, value in given.items():
        if key not in KEYS:
            raise SeedsError(f"'seeds' has no '{key}'{nearest(str(key), KEYS)}", str(key))
        if type(value) is not int or value < 1:
            raise SeedsError(f"'{key}' is a number of seeds, not '{value}'", key)
    if not {"first", "most"} <= given.keys():
        raise SeedsError("'seeds' needs 'first' and 'most', as in {first: 6, most: 16}")
    first, most, block = given["first"], given["most"], given.get("block", 2)
    if first > most:
        raise SeedsError(f"'first' is {first} seeds, and 'most' only {most}")
    return Seeds(list(range(most)), [*range(first, most, block), most])
