"""What a candidate may cost: `params=6M,multiply_adds=1.4G`, ranges as `params=5M..6M`."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from exp.usage import UsageError

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)([KMGT]?)", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """The least and the most of costs, by their names.

    Args:
        ranges: Both ends, which are within.
    """

    ranges: Mapping[str, tuple[float, float]]

    @classmethod
    def read(cls, text: str) -> Limits:
        """Limits as they are typed.

        Raises:
            UsageError: Something else is.
        """
        ranges: dict[str, tuple[float, float]] = {}
        for part in filter(None, text.replace(" ", "").split(",")):
            name, equals, value = part.partition("=")
            least, dots, most = value.partition("..")
            low, high = (0.0, _number(least)) if not dots else (_number(least), _number(most))
            if not name or not equals or low is None or high is None or low > high:
                raise UsageError(
                    f"--limit {part}: a limit is NAME=MOST or NAME=LEAST..MOST, such as params=6M, multiply_adds=1.4G, "
                    "params=5M..6M or latency_ms=30"
                )
            if name in ranges:
                raise UsageError(f"--limit {text}: {name} is limited twice; NAME=LEAST..MOST gives both ends")
            ranges[name] = low, high
        return cls(ranges)

    def check(self, known: Collection[str]) -> None:
        """Refuses a limit on what a network does not say.

        Args:
            known: Names of its costs.

        Raises:
            UsageError: Names one, and what could be limited.
        """
        if unknown := [name for name in self.ranges if name not in known]:
            raise UsageError(f"--limit {unknown[0]}: this network's costs are {', '.join(known)}")

    def excess(self, costs: Mapping[str, float]) -> float:
        """How far costs are from being within, the farthest as a share of its limit; 0 within."""
        return max((_outside(costs[name], *ends) for name, ends in self.ranges.items()), default=0.0)

    def __str__(self) -> str:
        said = [
            f"{name} of {short(most)} at most" if not least else f"{name} from {short(least)} to {short(most)}"
            for name, (least, most) in self.ranges.items()
        ]
        return " and ".join(said) or "no limit"


def short(value: float) -> str:
    """A cost in few letters: 5.87M, 1.34G, 12.3."""
    for unit in ("T", "G", "M", "K"):
        if abs(value) >= _UNITS[unit]:
            return f"{value / _UNITS[unit]:.4g}{unit}"
    return f"{value:.4g}"


def _outside(value: float, least: float, most: float) -> float:
    gap = max(least - value, value - most, 0.0)
    return gap / max(least if value < least else most, 1e-12) if gap else 0.0


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(text)
    value = float(match[1]) * _UNITS[match[2].upper()] if match else math.inf
    return value if math.isfinite(value) else None
