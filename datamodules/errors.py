"""What can be wrong with data, as values that cross process borders and as the one error a person sees."""

from __future__ import annotations

from dataclasses import dataclass


class DataError(Exception):
    """A data set that is missing, malformed or unusable; the message says which file and what to do."""


class OptionError(DataError, ValueError):
    """An argument of a data module or a transform that cannot be; the message says which, and what would do."""


@dataclass(frozen=True)
class BadSample:
    """One sample that could not be loaded, as a worker reports it to the main process.

    Args:
        index: Position within the split's data set.
        name: What a person would look for: a path, or ``cifar10/test #17``.
        reason: What is wrong with it.
        label: Class index, if the record has one.
        skippable: False when the sample is readable and the pipeline failed on it: skipping would hide a mistake
            in the configuration.
    """

    index: int
    name: str
    reason: str
    label: int | None = None
    skippable: bool = True

    def __str__(self) -> str:
        record = f"index {self.index}" + ("" if self.label is None else f", label {self.label}")
        return f"{self.name} ({record}): {self.reason}"
