"""Candidates, each evaluated once: their results are files, which all processes of a search read and write."""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from callbacks.whole_files import write_whole
from models.supernet import Architecture

# How often, in seconds, a process that has nothing left to do looks for what others have done.
_INTERVAL = 0.02


class Candidates:
    """What evaluations have found, in a folder.

    Any number of processes may share the folder. A candidate is evaluated by the process that locks its file; the
    lock of a process that is killed goes with it, and another one takes over.

    Args:
        folder: Of one network, its weights and the images that it is judged on.
        describe: An architecture in plain values, for who looks into the files.
        evaluate: What is found of an architecture: metrics by name.
    """

    def __init__(
        self,
        folder: Path,
        describe: Callable[[Architecture], dict[str, Any]],
        evaluate: Callable[[Architecture], dict[str, float]],
    ) -> None:
        self._folder, self._describe, self._evaluate = folder, describe, evaluate
        self._known: dict[Architecture, dict[str, float]] = {}
        # How many this process has evaluated.
        self.evaluated = 0

    def results(
        self, architectures: Sequence[Architecture], done: Callable[[Architecture], None] = lambda _: None
    ) -> list[dict[str, float]]:
        """The metrics of architectures, in their order: known ones, own ones, and those that others find meanwhile.

        Args:
            architectures: The candidates.
            done: Called for each as soon as it is known here.
        """
        left = list(dict.fromkeys(architectures))
        while left:
            before = len(left)
            for architecture in list(left):
                if self._find(architecture) or self._try(architecture):
                    left.remove(architecture)
                    done(architecture)
            if len(left) == before:
                time.sleep(_INTERVAL)
        return [self._known[each] for each in architectures]

    def _find(self, architecture: Architecture) -> bool:
        """Whether its result is known, if by now it lies in the folder."""
        if architecture not in self._known:
            try:
                content = json.loads(self._file(architecture).read_bytes())
                self._known[architecture] = {str(name): float(value) for name, value in content["metrics"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return False
        return True

    def _try(self, architecture: Architecture) -> bool:
        """Evaluates one, unless another process does."""
        with self._locked(architecture) as mine:
            # Another one may have done so since it was looked for.
            if not mine or self._find(architecture):
                return mine
            self._evaluate_one(architecture)
            return True

    def _evaluate_one(self, architecture: Architecture) -> None:
        start = time.perf_counter()
        metrics = self._evaluate(architecture)
        content = {
            "architecture": self._describe(architecture),
            "metrics": metrics,
            "seconds": round(time.perf_counter() - start, 4),
        }
        write_whole(self._file(architecture), json.dumps(content, indent=1) + "\n")
        self._known[architecture] = metrics
        self.evaluated += 1

    @contextmanager
    def _locked(self, architecture: Architecture) -> Iterator[bool]:
        lock = self._file(architecture).with_suffix(".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True
            # Whoever has it open still, or makes it anew, finds the result.
            lock.unlink(missing_ok=True)

    def _file(self, architecture: Architecture) -> Path:
        text = ",".join(repr(float(value)) for value in architecture)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
