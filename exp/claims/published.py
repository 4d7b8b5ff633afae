"""What has changed since a result was published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from exp.claims.claim_file import ClaimError, read_claim
from exp.claims.code_version import changes, version_now
from exp.claims.committed import Committed, reading
from exp.markup import visible
from exp.trust import read_yaml


def config_digest(path: Path) -> str:
    """A hash of what a config file says, without comments; empty if there is no such file."""
    if not path.is_file():
        return ""
    try:
        content = json.dumps(read_yaml(path.read_text()), sort_keys=True, default=str)
    except (yaml.YAMLError, UnicodeDecodeError):
        return "not YAML"
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def changed_since(results: Iterable[Committed]) -> dict[str, list[str]]:
    """What has changed since each result, by its name, in words; nothing where all is as published.

    Raises:
        SummaryError: a file is no result of compare.
    """
    changed = {}
    for folder, result, _ in results:
        with reading(folder):
            changed[folder.name] = outdated(result)
    return changed


def freshness(changed: Mapping[str, list[str]]) -> list[str]:
    """Which published results the code and the configs of today would give again, a line each."""
    lines = [visible(f"{name}: {'; '.join(reasons) or 'as published'}") for name, reasons in changed.items()]
    return [*lines, f"{sum(map(bool, changed.values()))} of {len(changed)} results would be measured again"]


def inside(path: str) -> Path:
    """A path that a result names, if it is one of this repository's.

    Raises:
        ValueError: it leads elsewhere.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"{path} is no file of this repository")
    return Path(path)


def outdated(result: dict[str, Any]) -> list[str]:
    """What of a result's claim, configs and code is another one now, in words; nothing if all is as it was.

    Args:
        result: what `results.json` holds.
    """
    reasons = []
    try:
        arms = {name: arm.overrides for name, arm in read_claim(inside(result["file"])).arms.items()}
        reasons += [f"the arm {name}" for name, arm in result["arms"].items() if arms.get(name) != arm["overrides"]]
    except ClaimError as error:
        reasons.append(str(error))
    reasons += [path for path, digest in result.get("configs", {}).items() if config_digest(inside(path)) != digest]
    return reasons + changes(result["code"], version_now(result["code"]))
