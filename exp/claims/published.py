"""What has changed since a result was published."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from exp.claims.claim_file import ClaimError, read_claim
from exp.claims.code_version import changes, version_now


def config_digest(path: Path) -> str:
    """A hash of what a config file says, without comments; empty if there is no such file."""
    if not path.is_file():
        return ""
    content = json.dumps(yaml.safe_load(path.read_text()), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def freshness(folder: Path) -> str:
    """Which published results the code and the configs of today would give again, a line each.

    Args:
        folder: `<claim>/results.json` below it.
    """
    files = sorted(folder.glob("*/results.json"))
    changed = {file.parent.name: outdated(json.loads(file.read_text())) for file in files}
    lines = [f"{name}: {'; '.join(reasons) or 'as published'}" for name, reasons in changed.items()]
    stale = sum(map(bool, changed.values()))
    return "\n".join([*lines, f"{stale} of {len(changed)} results would be measured again"])


def outdated(result: dict[str, Any]) -> list[str]:
    """What of a result's claim, configs and code is another one now, in words; nothing if all is as it was.

    Args:
        result: what `results.json` holds.
    """
    reasons = []
    try:
        arms = {name: arm.overrides for name, arm in read_claim(Path(result["file"])).arms.items()}
        reasons += [f"the arm {name}" for name, arm in result["arms"].items() if arms.get(name) != arm["overrides"]]
    except ClaimError as error:
        reasons.append(str(error))
    reasons += [path for path, digest in result.get("configs", {}).items() if config_digest(Path(path)) != digest]
    return reasons + changes(result["code"], version_now(result["code"]))
