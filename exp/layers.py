"""A config that changes another one says which, `builds_on: ../quickstart.yaml`: standing first, it brings it along."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from exp.arguments import config_files
from exp.trust import read_yaml
from exp.usage import ConfigError

KEY = "builds_on"


def with_base(argv: list[str]) -> list[str]:
    """The arguments of a command, with the config before the first one that it builds on, and so on.

    Who names another config before it has chosen what it is to change.

    Args:
        argv: the arguments, config files first.

    Raises:
        ConfigError: a config builds on a file that is not there, or on itself.
    """
    chain = config_files(argv)[:1]
    while chain and (base := _base(chain[-1])) is not None:
        if base in chain:
            raise ConfigError(f"{chain[-1]}: {KEY} goes round in a circle, by {base}")
        if not base.is_file():
            raise ConfigError(f"{chain[-1]}: {KEY} names {base}, and there is no such file")
        chain.append(base)
    return [*(f"--config={path}" for path in chain[:0:-1]), *argv]


def origins(names: Iterable[str], files: Iterable[str]) -> str:
    """The config files that have keys of some names, to be said; empty if there are none.

    Args:
        names: keys, anywhere in a config.
        files: the configs of a command.
    """
    wanted = set(names)
    return " and ".join(file for file in files if wanted & set(_keys(_content(Path(file)))))


def _keys(content: Any) -> Iterator[str]:
    for key, value in content.items() if isinstance(content, dict) else ():
        yield str(key)
        yield from _keys(value)


def _content(path: Path) -> Any:
    try:
        return read_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # The parser says what is wrong with it.
        return None


def _base(path: Path) -> Path | None:
    content = _content(path)
    named = content.get(KEY) if isinstance(content, dict) else None
    return None if named is None else Path(os.path.normpath(path.parent / str(named)))
