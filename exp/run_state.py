"""How a run stands, told by what it wrote down and by the process that holds it."""

from __future__ import annotations

import fcntl
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

STATE_FILE, CONFIG_FILE, LOCK_FILE = "run.json", "config.yaml", ".lock"
# Directories that this process holds: asking for its own lock would give it up.
HELD: set[Path] = set()


def read_state(path: Path) -> dict[str, Any]:
    """The content of a run directory's `run.json`; empty if there is none, or if it is damaged."""
    try:
        content = json.loads((path / STATE_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def state_of(path: Path, facts: dict[str, Any] | None = None) -> str:
    """How a run stands: `running`, `finished`, `stopped` (by a signal), `diverged`, `failed` or `interrupted`.

    Whether it runs is asked of the process, by the lock that it holds as long as it lives: who is killed cannot leave
    word of it.

    Args:
        path: the run's directory.
        facts: what its `run.json` holds, if that has been read.
    """
    status = (read_state(path) if facts is None else facts).get("status")
    if status == "finished":
        return "finished"
    if path.resolve() in HELD:
        return "running"
    with suppress(OSError):
        try:
            with (path / LOCK_FILE).open() as file:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "running"
    return status if status in ("stopped", "diverged", "failed") else "interrupted"
