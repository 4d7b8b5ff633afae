"""What is said to a mistake in a command or its config."""

from __future__ import annotations

import re
import sys


class UsageError(SystemExit):
    """A mistake in the command or its config: one line on standard error, exit code 2."""

    def __init__(self, message: str) -> None:
        # A name out of a file is text, not a command to the screen.
        shown = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], message)
        print(f"exp: {shown}", file=sys.stderr)
        super().__init__(2)
        self.message = message


class ConfigError(ValueError):
    """A config or override that cannot be resolved; the message is the one line that `UsageError` prints."""
