"""Results of claims that nobody ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOLDS = {
    "expect": "new > old",
    "verdict": "holds",
    "reason": "",
    "difference": {"mean": 3.0, "interval": [1.0, 5.0]},
    "settled": 8,
    "remarks": ["without seed 3 it would be inconclusive"],
    "would_settle": None,
}
OPEN = {
    "expect": "new > old + 2",
    "verdict": "inconclusive",
    "reason": "",
    "difference": {"mean": 1.0, "interval": [-1.0, 3.0]},
    "settled": None,
    "remarks": [],
    "would_settle": {"difference": 1.3, "seeds": 24},
}
AROUND = {
    "date": "2026-01-02",
    "commit": "abc1234",
    "machine": "2 CPU cores",
    "torch": "2.0",
    "minutes": 41.6,
    "jobs": 2,
    "arms": {name: {"0": {"seconds": 60.0, "throughput": 100.0, "wall": 70.0}} for name in ("old", "new")},
}


def arm(mean: float | None, **changes: Any) -> dict[str, Any]:
    """An arm of two seeds."""
    return {
        "overrides": {"threads": 1},
        "after": None,
        "values": {"0": mean, "1": mean},
        "mean": mean,
        "interval": None,
        "difference": {"mean": None, "interval": None},
        "params": 2000.0,
        "macs": 4e6,
        "diverged": [],
    } | changes


def made_up(**changes: Any) -> dict[str, Any]:
    """What `results.json` holds, of the sequential rule; some of it changed."""
    return {
        "claim": "New beats old.",
        "source": "a paper, table 3",
        "notes": "",
        "file": "configs/claims/one.yaml",
        "metric": "val/top1",
        "at": "last",
        "better": "max",
        "unit": "%",
        "seeds": [0, 1],
        "reference": "old",
        "overrides": [],
        "verdict": "holds",
        "rule": "sequential",
        "looks": [1, 2],
        "expectations": [HOLDS],
        "arms": {"old": arm(80.0), "new": arm(83.0)},
        "failed": [],
        "configs": {},
        "code": {"modules": {}, "libraries": {}},
    } | changes


def lay_down(folder: Path, result: Any, around: Any = AROUND) -> None:
    """Writes a result as compare does."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(result))
    (folder / "circumstances.json").write_text(json.dumps(around))
