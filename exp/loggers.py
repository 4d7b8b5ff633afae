"""Where metrics go: a CSV table in the run directory, and a W&B run beside it."""

from __future__ import annotations

import csv
import netrc
import os
import re
import uuid
from argparse import Namespace
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


class MetricsTable(Logger):
    """Writes one row per logged step to a CSV file, and survives being killed and resumed.

    A row is on the disk as soon as it is logged. A resumed run drops the rows at and after the step it resumes from,
    so that the table is the one of an uninterrupted run.

    Args:
        path: the CSV file; columns are `step`, `epoch` and every metric seen, in order of appearance.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns = ["step", "epoch"]
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.rows = [dict(row) for row in reader]
                self.columns = list(reader.fieldnames or self.columns)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """The run's version: its directory's name."""
        return self.path.parent.name

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsTable:
        """The table itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved config lies beside the table."""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the rows at and after a step."""
        kept = [row for row in self.rows if int(row["step"]) < step]
        if len(kept) < len(self.rows):
            self.rows = kept
            self._rewrite()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Writes metrics of one step; values logged at the same step and epoch share a row."""
        values = {name: f"{float(value):.7g}" for name, value in metrics.items() if name != "epoch"}
        epoch = metrics.get("epoch", "")
        key = {"step": str(step or 0), "epoch": str(int(epoch)) if epoch != "" else ""}
        new = [name for name in values if name not in self.columns]
        merge = bool(self.rows) and all(self.rows[-1][k] == v for k, v in key.items())
        if merge:
            self.rows[-1] |= values
        else:
            self.rows.append(key | values)
        self.columns += new
        if new or merge or not self.path.exists():
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(self.rows[-1])

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(partial, self.path)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """The steps and values of one metric."""
        found = [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name) not in (None, "")]
        return [step for step, _ in found], [value for _, value in found]


def wandb_logger(
    mode: Literal["auto", "online", "offline", "disabled"],
    folder: Path,
    experiment: str,
    run_id: str,
    config: dict[str, Any],
) -> WandbLogger | None:
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
    os.environ.setdefault("WANDB_SILENT", "true")
    run_id = run_id if isinstance(run_id, str) and _ID.fullmatch(run_id) else new_wandb_id()
    run = wandb.init(
        name=f"{experiment}/{folder.name}",
        project=os.environ.get("WANDB_PROJECT", "exp"),
        dir=folder,
        id=run_id,
        resume="allow" if mode == "online" else None,
        mode=mode,
        config=config,
    )
    return WandbLogger(experiment=run, save_dir=folder)


def new_wandb_id() -> str:
    """A fresh W&B run id."""
    return uuid.uuid4().hex[:8]


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
