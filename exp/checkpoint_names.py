"""What a person may call a checkpoint: its file, a run's directory, or the name of an experiment."""

from __future__ import annotations

import difflib
from pathlib import Path

# What `NAME/best` and `NAME/last` mean; a run without either of them named is meant for its best, if it has one.
KINDS: tuple[str, ...] = ("best", "last")


class NoCheckpoint(ValueError):
    """There is no such checkpoint; the message says what there is."""


def find_checkpoint(given: str, runs: Path) -> Path:
    """The file that a person means by a checkpoint.

    Args:
        given: a file; a run's directory, for its best checkpoint or else its last one; an experiment (below `runs`, or
            its folder), for its newest run's; either may be followed by `/best` or `/last`.
        runs: the folder of all runs.

    Raises:
        NoCheckpoint: there is none.
    """
    if Path(given).is_file():
        return Path(given)
    folder, kind = _folder(given, runs, KINDS)
    return _newest(folder, KINDS if kind is None else (kind,))


def find_run(given: str, runs: Path) -> Path:
    """The directory of the run that a person means.

    Args:
        given: a run's directory, or an experiment (below `runs`, or its folder), perhaps followed by `/last`, for its
            newest run.
        runs: the folder of all runs.

    Raises:
        NoCheckpoint: there is none.
    """
    folder, _ = _folder(given, runs, ("last",))
    if any((folder / part).exists() for part in ("run.json", "config.yaml", "checkpoints")):
        return folder
    return _newest(folder, ("last",)).parent.parent


def _folder(given: str, runs: Path, kinds: tuple[str, ...]) -> tuple[Path, str | None]:
    """The directory of a run or an experiment, and the kind of checkpoint that is named behind it, if one is."""
    name, kind = Path(given), None
    if name.name in kinds and not name.is_dir() and not (runs / name).is_dir():
        name, kind = name.parent, name.name
    for folder in (name, runs / name):
        if folder.is_dir():
            return folder, kind
    raise NoCheckpoint(f"{given}: no such file, nor a run's directory or an experiment in {runs}{_known(name, runs)}")


def _newest(folder: Path, kinds: tuple[str, ...]) -> Path:
    """The newest checkpoint of a run or of an experiment's runs, the first kind that a run has."""
    candidates = [folder, folder / "checkpoints", *(run / "checkpoints" for run in folder.iterdir() if run.is_dir())]
    found = [
        next((each / f"{kind}.ckpt" for kind in kinds if (each / f"{kind}.ckpt").is_file()), None)
        for each in candidates
    ]
    files = [path for path in found if path is not None]
    if not files:
        raise NoCheckpoint(f"{folder}: no {' or '.join(f'{kind}.ckpt' for kind in kinds)} in it yet")
    return max(files, key=lambda path: path.stat().st_mtime_ns)


def _known(name: Path, runs: Path) -> str:
    experiments = sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    near = difflib.get_close_matches(str(name), experiments, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
