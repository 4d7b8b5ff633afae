"""Where a run lives, and which checkpoint a repeated command goes on from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from exp.checkpoint_io import damage

# What may differ between the command that started a run and the one that continues it: where and how fast it runs.
PLACE = ("experiment", "version", "runs", "resume", "wandb", "test", "timeout", "threads", "config")
PLACE_TRAINER = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "enable_progress_bar",
    "enable_model_summary",
    "log_every_n_steps",
    "profiler",
    "default_root_dir",
)
PLACE_DATA = ("num_workers",)


class RunError(RuntimeError):
    """The run directory cannot be used as asked; the message names it and the remedy."""


@dataclass
class Run:
    """A run's directory, and where it continues.

    Args:
        path: `runs/<experiment>/<version>`.
        checkpoint: the checkpoint to resume from, or None for a fresh start.
        finished: whether the run had ended before this command.
        notes: what a person should know about how the directory was chosen.
    """

    path: Path
    checkpoint: Path | None = None
    finished: bool = False
    notes: list[str] = field(default_factory=list)
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """The folder of the pictures."""
        return self.path / "plots"

    def state(self) -> dict[str, Any]:
        """What `run.json` says: status, config's fingerprint, start, W&B id."""
        return read_state(self.path)

    def update(self, **values: Any) -> None:
        """Writes values into `run.json`, whole or not at all."""
        target = self.path / "run.json"
        partial = target.with_name(".run.json.partial")
        partial.write_text(json.dumps(self.state() | values, indent=2) + "\n")
        os.replace(partial, target)


def read_state(path: Path) -> dict[str, Any]:
    """The content of a run directory's `run.json`; empty if there is none."""
    try:
        return json.loads((path / "run.json").read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise RunError(
            f"{path / 'run.json'} is not valid JSON ({error}); remove {path} or choose another --version"
        ) from error


def essence(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that decides what is computed."""
    kept = {key: value for key, value in config.items() if key not in PLACE}
    kept["trainer"] = {k: v for k, v in (config.get("trainer") or {}).items() if k not in PLACE_TRAINER}
    data = config.get("data")
    if isinstance(data, dict) and isinstance(data.get("init_args"), dict):
        init_args = {k: v for k, v in data["init_args"].items() if k not in PLACE_DATA}
        kept["data"] = data | {"init_args": init_args}
    return kept


def fingerprint(config: dict[str, Any]) -> str:
    """A hash of `essence(config)`: equal for two commands that compute the same."""
    return hashlib.sha256(json.dumps(essence(config), sort_keys=True, default=str).encode()).hexdigest()[:16]


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The leaves in which two configs differ, as `key: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [f"{key}: {old} -> {new}"]


def open_run(
    root: Path,
    experiment: str,
    version: str | None,
    resume: str,
    config: dict[str, Any],
    resolve: Callable[[Path], dict[str, Any] | None] = lambda path: None,
) -> Run:
    """Chooses the run directory of a `fit` command and takes hold of it.

    With `resume="auto"`, the same command goes on with the newest unfinished run of the same config; `"never"` starts
    a new one; a path goes on with that run directory or from that checkpoint file.

    Args:
        root: the folder of all runs.
        experiment: the run's experiment, a relative path below `root`.
        version: the run's name below the experiment; None takes the next free number.
        resume: `auto`, `never`, or the path of a run directory or a checkpoint.
        config: the resolved config, as plain values.
        resolve: resolves a config file of an earlier version as today's would be, with options that have come since;
            None for one that cannot be.

    Raises:
        RunError: the directory is in use by another process, or the path to resume holds nothing usable.
    """
    mark = fingerprint(config)
    folder = root / experiment

    def is_same(path: Path) -> bool:
        found = read_state(path).get("fingerprint")
        if found in (None, mark):
            return True
        old = resolve(path / "config.yaml") if (path / "config.yaml").is_file() else None
        if old is None or fingerprint(old) != mark:
            return False
        Run(path).update(fingerprint=mark)
        return True

    if resume not in ("auto", "never"):
        path = Path(resume)
        if path.is_dir():
            is_same(path)
            return _continue(path, mark)
        if not path.is_file():
            raise RunError(f"--resume {resume}: neither a run directory nor a checkpoint, nor 'auto' or 'never'")
        if problem := damage(path):
            raise RunError(f"--resume {resume}: the checkpoint is {problem}")
        run = _create(folder, version, mark)
        run.checkpoint = path
        run.notes.append(f"starts from {path}")
        return run
    if version is not None:
        path = folder / version
        if not path.exists():
            return _create(folder, version, mark)
        if resume == "never":
            raise RunError(f"{path} exists: choose another --version, remove it, or allow --resume auto")
        if not is_same(path):
            raise RunError(f"{path} was started with another config: choose another --version or --resume {path}")
        return _continue(path, mark)
    notes = []
    if resume == "auto":
        for path in _versions(folder)[::-1]:
            state = read_state(path)
            if state.get("status") == "finished" or not state:
                continue
            if not is_same(path):
                notes.append(f"{path} is unfinished, but of another config; go on with it by --resume {path}")
                continue
            lock = _lock(path)
            if lock is None:
                notes.append(f"{path} is being trained by another process")
                continue
            return _continue(path, mark, lock)
    run = _create(folder, None, mark)
    run.notes += notes[:1]
    return run


def _versions(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit() and p.is_dir()), key=lambda p: int(p.name))


def _create(folder: Path, version: str | None, mark: str) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    if version is not None:
        path = folder / version
        path.mkdir(exist_ok=True)
    else:
        taken = _versions(folder)
        number = int(taken[-1].name) + 1 if taken else 0
        while True:
            path = folder / str(number)
            try:
                path.mkdir()
                break
            except FileExistsError:
                number += 1
    run = Run(path, _lock=_lock(path))
    run.update(status="created", fingerprint=mark, created=time.strftime("%Y-%m-%dT%H:%M:%S"))
    return run


def _continue(path: Path, mark: str, lock: IO[str] | None = None) -> Run:
    lock = lock or _lock(path)
    if lock is None:
        raise RunError(f"{path} is being trained by another process")
    state = read_state(path)
    run = Run(path, finished=state.get("status") == "finished", _lock=lock)
    if state.get("fingerprint") != mark:
        run.notes.append("goes on with a config that differs from the one it was started with")
        run.update(fingerprint=mark)
    for partial in run.checkpoints.glob(".*"):
        partial.unlink()
    for name in ("last", "previous"):
        candidate = run.checkpoints / f"{name}.ckpt"
        problem = damage(candidate)
        if problem is None:
            run.checkpoint = candidate
            break
        if candidate.exists():
            run.notes.append(f"{candidate} is {problem}: trying the checkpoint before it")
    return run


def _lock(path: Path) -> IO[str] | None:
    # A record lock belongs to the process: it ends with it, however it ends, and loader workers do not inherit it.
    file = (path / ".lock").open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
