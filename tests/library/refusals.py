"""What a command says to a mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from exp.usage import UsageError


def refused(capsys: pytest.CaptureFixture[str], action: Callable[[], object]) -> str:
    """The message of a command that ends in a mistake."""
    with pytest.raises(UsageError):
        action()
    return capsys.readouterr().err
