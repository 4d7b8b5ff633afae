"""The W&B run beside a run's own table: whatever happens to it, what it watches goes on."""

from __future__ import annotations

import importlib
import netrc
import os
import re
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import WandbLogger
from typing_extensions import override

from exp.messages import first_line

Mode = Literal["auto", "online", "offline", "disabled"]

_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
# How often a run is opened anew before it is given up.
REOPENINGS = 2
# Seconds that W&B may take to start, and in the end to upload; the environment may say otherwise.
PATIENCE = {"WANDB_INIT_TIMEOUT": "30", "WANDB_FINISH_TIMEOUT": "60"}


class Tracker(WandbLogger):
    """A W&B run that never ends what it watches.

    Where W&B fails, the run goes on offline, to be uploaded by `wandb sync`; where that fails, too, it is opened anew
    a few times and then given up. `trouble` says so, for the summary. It never prompts.

    Args:
        mode: `online` or `offline`.
        folder: which holds the run's files.
        **options: of `wandb.init`: name, project, id, config.
    """

    def __init__(self, mode: str, folder: Path, **options: Any) -> None:
        super().__init__(save_dir=folder, **options)
        self.folder, self.options = folder, options
        self.trouble = ""
        self._reopenings = 0
        self._run: Any = None
        os.environ.setdefault("WANDB_SILENT", "true")
        for name, seconds in PATIENCE.items():
            os.environ.setdefault(name, seconds)
        if mode == "online" and not _logged_in():
            self._warn("not logged in (`wandb login`): the run is kept offline")
            mode = "offline"
        self._open(mode)

    @property
    def experiment(self) -> Any:
        """The W&B run, or what stands for it once it is given up: everything can be called, and does nothing."""
        return self._run if self._run is not None else _Nothing()

    @override
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.attempt(lambda: super(Tracker, self).log_metrics(metrics, step))

    @override
    def log_hyperparams(self, params: Any) -> None:
        self.attempt(lambda: super(Tracker, self).log_hyperparams(params))

    @override
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        def log() -> None:
            row: dict[str, Any] = {key: [wandb.Image(image) for image in images]}
            WandbLogger.log_metrics(self, row, step)

        self.attempt(log)

    @override
    def finalize(self, status: str) -> None:
        """Nothing: `close` ends the run, when all is done."""

    def attempt(self, action: Callable[[], Any]) -> None:
        """Does something with the run; if that fails, once more with a run that is opened anew."""
        while self._run is not None:
            try:
                action()
                return
            except Exception as error:
                self._reopen(error)

    def close(self) -> None:
        """Ends the run: waits until its files are written, and uploaded if it is online."""
        if self._run is not None:
            self.attempt(lambda: self._run.finish())
            _let_go()
            self._run = None

    def _open(self, mode: str) -> None:
        try:
            self._run = wandb.init(
                mode=mode,  # type: ignore[arg-type]
                dir=self.folder,
                resume="allow" if mode == "online" else None,
                **self.options,
            )
        except Exception as error:
            self._run = None
            _let_go()
            if mode == "online":
                self._warn(f"{first_line(error)}: the run is kept offline")
                self._open("offline")
            else:
                self._warn(f"{first_line(error)}: given up; metrics.csv has what was logged")

    def _reopen(self, error: Exception) -> None:
        self._run = None
        _let_go()
        self._reopenings += 1
        if self._reopenings > REOPENINGS:
            self._warn(f"{first_line(error)}: given up; metrics.csv has what was logged")
            return
        self._warn(f"{first_line(error)}: the run goes on offline")
        self._open("offline")

    def _warn(self, what: str) -> None:
        trouble = f"W&B: {what}"
        if trouble != self.trouble:
            print(f"exp: {trouble}", file=sys.stderr, flush=True)
        self.trouble = trouble


class _Nothing:
    """Stands for a W&B run: every attribute of it can be called, set and read, and is nothing again."""

    def __getattr__(self, name: str) -> _Nothing:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self

    def __setitem__(self, name: str, value: Any) -> None:
        """Forgets it."""


def wandb_logger(mode: Mode, folder: Path, experiment: str, run_id: str, config: dict[str, Any]) -> Tracker | None:
    """The W&B run of a directory; it never prompts, and calls no server unless the user is logged in.

    Args:
        mode: `auto` (online if logged in, else offline), `online`, `offline` or `disabled`; the environment variable
            WANDB_MODE decides what `auto` means, if it is set.
        folder: the run directory, which holds the offline run.
        experiment: the run's name; the W&B project is WANDB_PROJECT or `exp`.
        run_id: the W&B id, the same after a resume; what cannot be one, of a damaged `run.json`, is replaced.
        config: the resolved config.
    """
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE", "online" if _logged_in() else "offline")
        mode = "disabled" if asked == "disabled" else "online" if asked == "online" else "offline"
    if mode == "disabled":
        return None
    project = os.environ.get("WANDB_PROJECT", "exp")
    run_id = run_id if isinstance(run_id, str) and _ID.fullmatch(run_id) else new_wandb_id()
    return Tracker(mode, folder, name=f"{experiment}/{folder.name}", project=project, id=run_id, config=config)


def preload() -> None:
    """Imports what W&B otherwise imports as a run begins, which takes a second."""
    with suppress(ImportError):
        importlib.import_module("wandb.sdk.launch.inputs.internal")


def new_wandb_id() -> str:
    """A fresh W&B run id."""
    return uuid.uuid4().hex[:8]


def _let_go() -> None:
    """Ends W&B's service, whose remains would raise at the process's end."""
    try:
        wandb.teardown()
    except Exception:  # it may have been killed, which is why it is let go
        return


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
