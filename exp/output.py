"""What is printed is not worth a training: a pipe may break, a terminal be closed, a disk with the log be full."""

from __future__ import annotations

import sys
from typing import Any, TextIO, cast


class Forgiving:
    """A stream of text that loses what cannot be written.

    Args:
        stream: where it is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text if it can be."""
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        """Writes what waits if it can be."""
        try:
            self._stream.flush()
        except OSError:
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive() -> None:
    """Lets this process go on when nobody can read any more what it prints."""
    sys.stdout = cast(TextIO, Forgiving(sys.stdout))
    sys.stderr = cast(TextIO, Forgiving(sys.stderr))
