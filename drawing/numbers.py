"""Numbers as people read them."""

from __future__ import annotations


def readable(count: float) -> str:
    """A count of parameters or multiply-adds in billions, millions or thousands."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} G"
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.2f} k"
