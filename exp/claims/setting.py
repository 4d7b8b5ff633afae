"""What was measured on what: the setting of a result, as far as it and its unchanged configs tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exp.claims.claim_file import written
from exp.claims.published import config_digest, inside
from exp.trust import read_yaml


def setting(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts that all arms share, each with its name.

    A config that is no longer what was measured is not asked.

    Args:
        result: what `results.json` holds.
    """
    data = _last(result, "data.class_path", "data")
    root = _last(result, "data.init_args.root", "data.root")
    folder = f" ({Path(root).name})" if root else ""
    metric = result["metric"] + (f" in {result['unit']}" if result["unit"] else "")
    which = "best checkpoint" if metric.startswith("test/") else f"{result['at']} validation"
    facts = [
        ("Config", ", ".join(result["configs"])),
        ("Data", data.rpartition(".")[2] + folder if data else ""),
        ("Epochs", _last(result, "trainer.max_epochs")),
        ("Metric", f"{metric}, of the {which}"),
        ("All arms", listed(shared(result))),
        ("Changed", " ".join(result["overrides"])),
    ]
    return [(name, said) for name, said in facts if said]


def shared(result: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that all arms have alike."""
    first, *others = (arm["overrides"] for arm in result["arms"].values())
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def own(result: Mapping[str, Any], arm: str) -> str:
    """What an arm changes that others do not, in words."""
    common = shared(result)
    entry = result["arms"][arm]
    changes = listed({key: value for key, value in entry["overrides"].items() if key not in common})
    after = f"starts from {entry['after']}" if entry["after"] else ""
    return "; ".join(filter(None, (after, *entry.get("takes", []), changes))) or "changes nothing"


def listed(overrides: Mapping[str, Any]) -> str:
    """Overrides in a line, with keys as short as the command line takes them."""
    return ", ".join(f"{key.replace('.init_args', '')} = {written(value)}" for key, value in overrides.items())


def _last(result: Mapping[str, Any], *keys: str) -> str:
    """What is said of one of some keys by whoever has the last word; empty if nobody says it, or arms differ in it."""
    common = shared(result)
    if any(key in arm["overrides"].keys() - common.keys() for arm in result["arms"].values() for key in keys):
        return ""
    for source in _sources(result):
        for key in keys:
            if key in source and not isinstance(source[key], dict | list):
                return written(source[key])
    return ""


def _sources(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The command line, what all arms override, then the configs, from the last to the first."""
    yield dict(override.removeprefix("--").partition("=")[::2] for override in result["overrides"])
    yield dict(_dotted(shared(result)))
    for path, digest in reversed(result["configs"].items()):
        if config_digest(inside(path)) == digest:
            yield dict(_dotted(read_yaml(inside(path).read_text())))


def _dotted(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield f"{prefix}{key}", value
            yield from _dotted(value, f"{prefix}{key}.")
