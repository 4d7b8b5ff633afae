"""Published results as they lie in a folder: strangers' files, until they have been read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path("docs/claims")


class SummaryError(RuntimeError):
    """A result cannot be read or its summary not be written; the message names the file and the remedy."""


class Committed(NamedTuple):
    """A published result.

    Args:
        folder: where it lies; its name is the claim's.
        result: what `results.json` holds.
        around: what `circumstances.json` holds.
    """

    folder: Path
    result: dict[str, Any]
    around: dict[str, Any]

    @property
    def former(self) -> bool:
        """Whether its verdicts are of a single look by the t interval alone."""
        return "rule" not in self.result


def read_results(folder: Path = FOLDER) -> list[Committed]:
    """All published results, by name.

    Args:
        folder: `<claim>/results.json` and `circumstances.json` below it.

    Raises:
        SummaryError: a file is no result of compare.
    """
    return [_read(file.parent) for file in sorted(folder.glob("*/results.json"))]


def _read(folder: Path) -> Committed:
    contents = []
    for name in ("results.json", "circumstances.json"):
        with reading(folder / name):
            content = json.loads((folder / name).read_bytes())
            # Half a character, which JSON can name, cannot be written again.
            json.dumps(content, ensure_ascii=False).encode()
            if not isinstance(content, dict):
                raise ValueError("no mapping")
            contents.append(content)
    return Committed(folder, *contents)


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """What a result does not have, or has otherwise than compare writes it, is an error that names file or folder."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise SummaryError(f"{place}: not a result of compare ({error!r}); run its claim with --publish") from error
