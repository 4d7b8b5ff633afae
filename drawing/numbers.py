"""Numbers as people read them."""

from __future__ import annotations


def readable(count: float) -> str:
    """A count of parameters or multiply-adds in billions, millions or thousands."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} G"
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.2f} k"


def number(value: float) -> str:
    """A value of a table: a count of many digits in billions or millions, a whole one as it is, else four digits."""
    if abs(value) >= 1e5:
        return readable(value)
    return str(int(value)) if value == int(value) and abs(value) >= 2 else f"{value:.4f}"
