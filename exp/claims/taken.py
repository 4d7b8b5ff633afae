"""What an arm takes from other arms of the same seed: a checkpoint, a file of the run, a number that was measured."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePath
from typing import Any, Literal

from exp.claims.expectations import ExpectationError, Term, nearest, parse_term

KEYS = ("arm", "checkpoint", "file", "content", "search", "number", "as")


class TakenError(ValueError):
    """What an arm cannot take; with the place in its entry that is wrong.

    Args:
        message: what is wrong.
        place: position of it in the entry.
    """

    def __init__(self, message: str, *place: str | int) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True)
class After:
    """What an arm takes from another arm's run at the same seed.

    Args:
        arm: its name.
        checkpoint: which of its checkpoints.
        key: the config key that takes the path.
        file: a file of its run directory instead of a checkpoint.
    """

    arm: str
    checkpoint: Literal["best", "last"] = "best"
    key: str = "weights"
    file: str = ""

    @property
    def path(self) -> str:
        """Where it lies in the run directory."""
        return self.file or f"checkpoints/{self.checkpoint}.ckpt"

    @property
    def arms(self) -> list[str]:
        """The arms that have to end first."""
        return [self.arm]

    def __str__(self) -> str:
        what = self.file or f"the {self.checkpoint} checkpoint"
        return f"{self.key} = {what} of {self.arm}"


@dataclass(frozen=True)
class Content:
    """What stands in a file of another arm's run, which becomes part of this arm's config.

    Args:
        arm: its name.
        file: a JSON file of its run directory.
        key: the config key that takes the content.
    """

    arm: str
    file: str
    key: str

    @property
    def arms(self) -> list[str]:
        """The arms that have to end first."""
        return [self.arm]

    def __str__(self) -> str:
        return f"{self.key} = what {self.file} of {self.arm} says"


@dataclass(frozen=True)
class Searched:
    """The best architecture that a search of another arm's supernet finds, or the weights that it inherits.

    Args:
        arm: its name.
        options: of `exp search`.
        key: the config key that takes the network, or, where it is one of `weights`, the path of the weights.
    """

    arm: str
    options: tuple[str, ...]
    key: str

    @property
    def arms(self) -> list[str]:
        """The arms that have to end first."""
        return [self.arm]

    @property
    def name(self) -> str:
        """Of the search's folder in the run of the arm: the same question has the same one."""
        return f"claim-{sha256(chr(0).join(self.options).encode()).hexdigest()[:12]}"

    @property
    def of_weights(self) -> bool:
        """Whether the weights are taken, and not the network."""
        return self.key.partition(".")[0] == "weights"

    def __str__(self) -> str:
        what = "the weights of the best" if self.of_weights else "the best"
        return f"{self.key} = {what} of `search {' '.join(self.options)}` in {self.arm}"


@dataclass(frozen=True)
class Measured:
    """A number that an arm takes from what other arms have measured at the same seed.

    Args:
        text: the arithmetic, as written.
        term: the same, understood.
        key: the config key that takes the number.
    """

    text: str
    term: Term
    key: str

    @property
    def arms(self) -> list[str]:
        """The arms that have to end first."""
        return sorted({arm for _, arm in self.term.quantities()})

    def __str__(self) -> str:
        return f"{self.key} = {self.text}"


# What an arm takes of another one.
Taken = After | Content | Searched | Measured


def read_taken(after: Any, arms: Collection[str]) -> tuple[Taken, ...]:
    """What an arm's `after` says: the name of an arm, one thing that is taken, or a list of them.

    Args:
        after: the entry.
        arms: names of the arms.

    Raises:
        TakenError: it says what it cannot mean.
    """
    if after is None:
        return ()
    if isinstance(after, list):
        return tuple(_read(each, arms, i) for i, each in enumerate(after))
    return (_read(after, arms),)


def _read(after: Any, arms: Collection[str], *place: int) -> Taken:
    if isinstance(after, str):
        return After(after)
    if not isinstance(after, dict):
        raise TakenError(f"'after' is the name of an arm, or a mapping with {', '.join(KEYS)}, not '{after}'", *place)
    for key in after:
        if key not in KEYS:
            raise TakenError(f"'after' has no '{key}'{nearest(str(key), KEYS)}", *place, str(key))
    if "number" in after:
        if set(after) != {"number", "as"}:
            raise TakenError("'number' names its arms itself and stands with 'as', the key that takes it", *place)
        text = str(after["number"])
        try:
            return Measured(text, parse_term(text, arms), str(after["as"]))
        except ExpectationError as error:
            raise TakenError(str(error), *place, "number") from error
    if not isinstance(after.get("arm"), str):
        raise TakenError("'after' names an 'arm'", *place)
    if after.get("checkpoint", "best") not in ("best", "last"):
        raise TakenError("'checkpoint' is best or last", *place, "checkpoint")
    return _of_run(after, *place)


def _of_run(after: dict[str, Any], *place: int) -> After | Content | Searched:
    kinds = [kind for kind in ("checkpoint", "file", "content", "search") if kind in after]
    if len(kinds) > 1:
        raise TakenError(f"'{kinds[1]}' stands in place of '{kinds[0]}'", *place, kinds[1])
    kind = kinds[0] if kinds else "checkpoint"
    if kind == "checkpoint":
        return After(after["arm"], after.get("checkpoint", "best"), str(after.get("as", "weights")))
    file = str(after[kind])
    if "as" not in after:
        raise TakenError(f"'{kind}' stands with 'as', the key that takes it", *place, kind)
    if kind == "search":
        return Searched(after["arm"], tuple(shlex.split(file)), str(after["as"]))
    if not file or PurePath(file).is_absolute() or ".." in PurePath(file).parts:
        raise TakenError(f"'{kind}' names a file in the run directory of the other arm, not '{file}'", *place, kind)
    if kind == "content":
        return Content(after["arm"], file, str(after["as"]))
    return After(after["arm"], key=str(after["as"]), file=file)
