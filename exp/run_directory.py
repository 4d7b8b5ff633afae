"""Where a run lives, and which checkpoint a repeated command goes on from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from callbacks.whole_files import write_whole
from exp.checkpoint_io import CheckpointError, config_of, damage, read_checkpoint
from exp.checkpoint_names import NoCheckpoint, find_run
from exp.run_state import CONFIG_FILE, HELD, LOCK_FILE, STATE_FILE, read_state

LOCK_TRIALS = 4

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
        fingerprint: that of the command's config.
        is_new: whether this command has made the directory.
        facts: what `run.json` holds.
    """

    path: Path
    checkpoint: Path | None = None
    finished: bool = False
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""
    is_new: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        """The folder of the pictures."""
        return self.path / "plots"

    @property
    def state_file(self) -> Path:
        """`run.json`."""
        return self.path / STATE_FILE

    def update(self, **values: Any) -> None:
        """Adds to the facts, and writes `run.json`, whole or not at all."""
        self.facts |= values
        write_whole(self.state_file, json.dumps(self.facts, indent=2) + "\n")

    def still_there(self) -> bool:
        """Whether the directory is the one that this process has taken hold of."""
        if self._lock is None:
            return True
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path / LOCK_FILE))
        except FileNotFoundError:
            return False

    def take_again(self) -> None:
        """Makes the directory anew where it was removed, and takes hold of it.

        Raises:
            RunError: another process has taken its place.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if (lock := _lock(self.path)) is None:
            raise RunError(f"{self.path} was removed while it was trained, and another process has taken its place")
        self._lock = lock

    def remove(self) -> None:
        """Removes the directory, and that of its experiment if there is no other run in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
        HELD.discard(self.path.resolve())
        with suppress(OSError):
            self.path.parent.rmdir()


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
    a new one; a path, or the name of an experiment for its newest run, goes on with that run directory or from that
    checkpoint file.

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
        facts = read_state(path)
        if facts and facts.get("fingerprint") in (None, mark):
            return True
        old = resolve(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else None
        if old is not None and fingerprint(old) == mark:
            return True
        # Where run.json is damaged, config.yaml may be, too; the checkpoints say what they were made with.
        return not facts and any(fingerprint(config) == mark for config in _checkpointed_configs(path))

    if resume not in ("auto", "never"):
        path = Path(resume)
        if not path.is_file():
            try:
                path = find_run(resume, root)
            except NoCheckpoint as error:
                raise RunError(f"--resume {error}; or give auto or never") from None
            return _continue(path, mark, is_same(path))
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
    notes: list[str] = []
    if resume == "auto":
        for path in _versions(folder)[::-1]:
            state = read_state(path)
            if state.get("status") == "finished" or not (state or (path / CONFIG_FILE).is_file()):
                continue
            if not is_same(path):
                notes.append(f"{path} is unfinished, but of another config; go on with it by --resume {path}")
                continue
            lock = _lock(path)
            if lock is None:
                notes.append(f"{path} is being trained by another process")
                continue
            return _continue(path, mark, lock=lock)
    run = _create(folder, None, mark)
    run.notes += notes[:1]
    return run


def _versions(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit() and p.is_dir()), key=lambda p: int(p.name))


def _create(folder: Path, version: str | None, mark: str) -> Run:
    try:
        path = folder / version if version is not None else _next_version(folder)
        path.mkdir(parents=True, exist_ok=True)
        if (lock := _lock(path)) is None:
            raise RunError(f"{path} is being trained by another process")
        run = Run(path, fingerprint=mark, is_new=True, _lock=lock)
        run.update(status="unfinished", fingerprint=mark, created=time.strftime("%Y-%m-%dT%H:%M:%S"))
    except OSError as error:
        raise RunError(
            f"{error.filename or folder}: no run can be made there ({error.strerror}); choose another folder by --runs"
        ) from error
    return run


def _next_version(folder: Path) -> Path:
    """A new folder with the next free number, which no other process has made."""
    taken = _versions(folder)
    number = int(taken[-1].name) + 1 if taken else 0
    while True:
        path = folder / str(number)
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def _continue(path: Path, mark: str, same: bool = True, lock: IO[str] | None = None) -> Run:
    """Takes hold of a run's directory.

    Args:
        path: the directory.
        mark: the fingerprint of the command's config.
        same: whether the run's own config computes the same.
        lock: what holds the directory, if it has been taken hold of.
    """
    lock = lock or _lock(path)
    if lock is None:
        raise RunError(f"{path} is being trained by another process")
    facts = read_state(path)
    run = Run(path, finished=facts.get("status") == "finished", fingerprint=mark, facts=facts, _lock=lock)
    if not facts:
        run.facts = {"status": "unfinished", "fingerprint": mark, **_wandb_id(path)}
        run.notes.append(f"{run.state_file} is missing or damaged: written anew; results in it, if any, are lost")
    elif same and facts.get("fingerprint") != mark:
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


def _checkpointed_configs(path: Path) -> Iterator[dict[str, Any]]:
    """What the checkpoints of a run were made with."""
    for name in ("last", "previous"):
        with suppress(CheckpointError):
            config = config_of(read_checkpoint(path / "checkpoints" / f"{name}.ckpt"))
            if config is not None:
                yield config


def _wandb_id(path: Path) -> dict[str, str]:
    """The id of the newest W&B run in a directory, as its folder is called."""
    folders = sorted(each.name for each in (path / "wandb").glob("*run-*-*") if each.is_dir())
    found = [name.rpartition("-")[2] for name in folders]
    return {"wandb_id": found[-1]} if found and found[-1].isalnum() else {}


def _lock(path: Path) -> IO[str] | None:
    # A record lock belongs to the process: it ends with it, however it ends, and loader workers do not inherit it.
    file = (path / LOCK_FILE).open("a")
    for trial in range(LOCK_TRIALS):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            HELD.add(path.resolve())
            return file
        except OSError:
            # Somebody may be asking how the run stands.
            time.sleep(0.05 if trial < LOCK_TRIALS - 1 else 0)
    file.close()
    return None
