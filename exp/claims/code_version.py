"""Which code a result came from: hashes of the modules that its run imports, and versions of the libraries."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable, Iterator
from typing import Any

from exp.claims.imports import Sources, Target

# What every cell runs.
COMMAND: Target = ("exp.fit", "main")
LIBRARIES = ("torch", "torchvision", "lightning", "timm", "albumentations", "numpy")
SPLITS = ("train/", "val/", "test/")
Version = dict[str, dict[str, str]]


def registering_module(name: str) -> str | None:
    """The module that registers a network of a name, perhaps with the tag of its weights, with timm."""
    import timm

    import models  # noqa: F401  registers ours

    base = name.partition(".")[0]
    return timm.models.model_entrypoint(base).__module__ if timm.is_model(base) else None


@functools.cache
def _installed() -> Sources:
    return Sources(registered=registering_module)


def code_version(config: dict[str, Any], metrics: Iterable[str] = (), sources: Sources | None = None) -> Version:
    """The version of the code that a config's result depends on: what its run imports, and nothing else.

    The run is `exp fit` and whatever the config names: classes and functions by their paths, networks by the names
    that they are registered with timm under. What these import counts, directly or not. A comment, a docstring or a
    reformatted line changes nothing. Nor does a drawing or a report, also one that the config names: they only watch a
    run. But a report that logs one of the metrics, or one that the config names, makes a part of the result.

    Args:
        config: resolved, as plain values.
        metrics: what is asked of the result, such as `test/top1`.
        sources: the modules to read; by default those that are installed.

    Returns:
        `modules`: module -> hash of its text; `libraries`: library -> its version.
    """
    sources = sources or _installed()
    words = sorted(set(_words(config)))
    named = [target for word in words if (target := sources.target(word)) and not sources.is_report(target)]
    registered = [(home, "") for word in words if (home := sources.registered(word))]
    names = {metric.partition("/")[2] for metric in (*metrics, *words) if metric.startswith(SPLITS)}
    logging = [(report, "") for report in sources.reports_that_log(names)]
    tops = {path.partition(".")[0] for path in _class_paths(config)}
    return {
        "modules": sources.digests([COMMAND, *named, *registered, *logging]),
        "libraries": {name: _release(name) for name in sorted({*LIBRARIES, *tops}) if sources.find(name) is None},
    }


def merged(versions: Iterable[Version]) -> Version:
    """The version of the code of several runs of the same sources."""
    together: Version = {"modules": {}, "libraries": {}}
    for version in versions:
        for kind, entries in version.items():
            together[kind] |= entries
    return {kind: dict(sorted(entries.items())) for kind, entries in together.items()}


def version_now(recorded: dict[str, Any]) -> Version:
    """The version, in today's code, of what a recorded version is of.

    No config is needed: as long as no module has changed, they import each other as before.
    """
    return {
        "modules": _installed().digests((name, "") for name in recorded.get("modules", ())),
        "libraries": {name: _release(name) for name in recorded.get("libraries", ())},
    }


def changes(old: dict[str, Any], new: Version) -> list[str]:
    """What differs between two versions, in words.

    Args:
        old: a recorded version.
        new: the version now.
    """
    if "modules" not in old:
        return ["its code was recorded by whole packages, as was done once"]
    before, now = old["modules"], new["modules"]
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    # What is nearest to the numbers comes first.
    modules = sorted(changed, key=lambda name: (name.startswith(("callbacks", "exp")), name))
    lines = [f"the code of {_listed(modules)}"] if modules else []
    before, now = old["libraries"], new["libraries"]
    names = sorted(before.keys() | now.keys())
    return lines + [f"{n} {before.get(n)} -> {now.get(n)}" for n in names if before.get(n) != now.get(n)]


def _listed(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more modules" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _words(config: Any) -> Iterator[str]:
    """Every text in a config."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict):
        for value in config.values():
            yield from _words(value)
    elif isinstance(config, list):
        for value in config:
            yield from _words(value)


def _class_paths(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"]
        for value in config.values():
            yield from _class_paths(value)
    elif isinstance(config, list):
        for value in config:
            yield from _class_paths(value)


@functools.cache
def _release(library: str) -> str:
    """The version of a library, by the name that it is imported by."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        distributions = importlib.metadata.packages_distributions().get(library, [])
        return importlib.metadata.version(distributions[0]) if distributions else "unknown"
