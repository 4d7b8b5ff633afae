"""The cells of a claim: one ordinary `fit` for each arm and seed, and what is known of each."""

from __future__ import annotations

import difflib
import json
import math
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from callbacks.whole_files import write_whole
from exp.claims.claim_file import Arm, Claim, ClaimError
from exp.claims.code_version import changes, code_version
from exp.claims.expectations import COSTS
from exp.claims.searched import SearchFailed, found
from exp.claims.taken import After, Content, Measured, Searched
from exp.cli import resolve
from exp.loggers import MetricsTable
from exp.run_directory import differences, essence, fingerprint
from exp.run_state import read_state, state_of
from exp.usage import ConfigError

# What compare decides for every cell.
OWN_KEYS = ("experiment", "version", "runs", "resume", "config", "seed_everything", "ckpt_path", "wandb")


class State(StrEnum):
    """How far a cell has come."""

    NEW = "to run"
    UNFINISHED = "to resume"
    FINISHED = "finished"
    STALE = "to run again"
    RUNNING = "running"
    FAILED = "failed"
    DIVERGED = "diverged"
    BLOCKED = "not run"


@dataclass
class Cell:
    """One fit.

    Args:
        arm: its arm.
        seed: its seed.
        path: its run directory.
        command: what follows `python -m exp fit`.
        config: the resolved config.
        identity: what its result depends on: config, code, and the cells that it takes something from.
        parents: the cells that it takes something from.
        state: how far it has come.
        reason: why it is stale, failed or blocked.
    """

    arm: Arm
    seed: int
    path: Path
    command: list[str]
    config: dict[str, Any]
    identity: dict[str, Any]
    parents: list[Cell] = field(default_factory=list)
    state: State = State.NEW
    reason: str = ""

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.arm.name} seed {self.seed}"

    @property
    def ended(self) -> bool:
        """Whether it has given what it can give: a result, or the knowledge that it diverges."""
        return self.state in (State.FINISHED, State.DIVERGED)

    @property
    def log(self) -> Path:
        """What its process prints."""
        return self.path.with_suffix(".log")

    @property
    def record(self) -> Path:
        """Where its identity is kept, beside the run directory that `fit` makes."""
        return self.path.with_suffix(".cell.json")

    def recorded(self) -> dict[str, Any]:
        """What the record says; empty if there is none that can be read."""
        try:
            content = json.loads(self.record.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def note(self, **values: Any) -> None:
        """Adds to the record, whole or not at all."""
        write_whole(self.record, json.dumps(self.recorded() | values, indent=1) + "\n")

    def begins(self) -> None:
        """Notes that its process starts."""
        self.note(wall=self.wall(), started=time.time())

    def ends(self) -> None:
        """Notes that its process has ended."""
        self.note(wall=self._wall(time.time()), started=None)

    def wall(self) -> float:
        """Seconds of its processes from start to end, over all resumptions.

        Of one that was killed together with what started it, until it last wrote something.
        """
        files = (self.log, self.path / "metrics.csv", self.path / "checkpoints")
        return self._wall(max((file.stat().st_mtime for file in files if file.exists()), default=0.0))

    def _wall(self, end: float) -> float:
        record = {"of": self.recorded()}
        before, started = (_number(record, "of", name) for name in ("wall", "started"))
        running = max(0.0, end - started) if math.isfinite(started) else 0.0
        return (before if math.isfinite(before) else 0.0) + running

    def look(self) -> None:
        """Finds out how far the cell has come."""
        self.state, self.reason = State.NEW, ""
        if lost := next((parent for parent in self.parents if parent.state is State.DIVERGED), None):
            self.state, self.reason = State.DIVERGED, f"{lost.name} diverged"
            return
        if not self.path.exists():
            return
        was = self.recorded().get("identity")
        if was != self.identity:
            self.state, self.reason = State.STALE, _why(was, self.identity)
            return
        status = state_of(self.path)
        # What diverged would diverge again: that is its result.
        self.state = {"finished": State.FINISHED, "diverged": State.DIVERGED}.get(status, State.UNFINISHED)
        self.reason = "being trained by another process" if status == "running" else ""

    def clear(self, keep: bool) -> None:
        """Makes room for a new run; the old one is moved aside, or removed."""
        if self.path.exists() and keep:
            aside = self.path.parent / "stale"
            aside.mkdir(exist_ok=True)
            number = sum(1 for _ in aside.glob(f"{self.path.name}-*"))
            self.path.rename(aside / f"{self.path.name}-{number}")
        elif self.path.exists():
            shutil.rmtree(self.path)
        self.record.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        self.state, self.reason = State.NEW, ""

    def value(self, metric: str, at: str, better: str) -> float:
        """The metric of a finished cell: of `test/...` the tested one, else the last or the best logged one."""
        if metric.startswith("test/"):
            return _number(read_state(self.path), "test", metric)
        _, values = MetricsTable(self.path / "metrics.csv").series(metric)
        if not values:
            return math.nan
        return values[-1] if at == "last" else (max if better == "max" else min)(values)

    def logged(self, metric: str) -> bool:
        """Whether a finished cell has a value of this metric, be it a number or not."""
        if metric.startswith("test/"):
            return metric in (read_state(self.path).get("test") or {})
        return bool(MetricsTable(self.path / "metrics.csv").series(metric)[1])

    def cost(self) -> dict[str, float]:
        """`params`, `macs` and `latency` (milliseconds an image) as the run measured them, `seconds` of training and
        images per second (`throughput`).

        Seconds are those of training steps, without start-up and validation, over all resumptions.
        """
        state = read_state(self.path)
        steps, rates = MetricsTable(self.path / "metrics.csv").series("train/images_per_second")
        batch = self.config["data"]["init_args"].get("batch_size") if "data" in self.config else None
        cost = {name: _number(state, "cost", name) for name in ("params", "macs", "latency")}
        if not rates or not isinstance(batch, int):
            return cost | {"seconds": math.nan, "throughput": math.nan}
        batch *= self.config["trainer"].get("accumulate_grad_batches") or 1
        taken = [b - a for a, b in zip([-1, *steps], steps, strict=False)]
        seconds = sum(count * batch / rate for count, rate in zip(taken, rates, strict=True))
        return cost | {"seconds": seconds, "throughput": (steps[-1] + 1) * batch / seconds}


def _number(state: Any, part: str, name: str) -> float:
    """A number in a part of a run's state; NaN for what is none."""
    values = state.get(part)
    value = values.get(name) if isinstance(values, dict) else None
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return math.nan


def _why(was: Any, now: dict[str, Any]) -> str:
    code = was.get("code") if isinstance(was, dict) else None
    if not isinstance(code, dict) or not all(isinstance(part, dict) for part in code.values()):
        return "of unknown origin"
    # What an arm changes shows in its config, unless it is about where it runs.
    reasons = differences(was.get("config"), now["config"]) or differences(was.get("arm"), now["arm"])
    reasons += [f"changed: {line}" for line in changes(code, now["code"])]
    if was.get("after") != now["after"]:
        reasons.append("the arm that it starts from has changed")
    return "; ".join(reasons)


def plan(claim: Claim, arms: Collection[str], seeds: Collection[int], runs: Path, extra: list[str]) -> list[Cell]:
    """The cells of a claim, seed by seed, each behind those that it takes something from.

    Args:
        claim: the claim.
        arms: names of the arms to run, and those that they take something from.
        seeds: the seeds to run.
        runs: the folder of all runs.
        extra: overrides of every cell, from the command line.

    Raises:
        ClaimError: a config or an override that cannot be resolved; names the line.
    """
    experiment = f"claims/{claim.name}"
    base = [*(f"--config={config}" for config in claim.configs)]
    configs = _resolved(claim, base, extra)
    cells: dict[tuple[str, int], Cell] = {}
    with_files: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for seed in seeds:
        for arm in claim.arms.values():
            if arm.name not in arms:
                continue
            parents = [cells[name, seed] for name in arm.parents]
            settings = [*base, *arm.arguments(), *extra, f"--seed_everything={seed}"]
            config = configs[arm.name] | {"seed_everything": seed}
            if files := [taken for taken in arm.after if isinstance(taken, After)]:
                paths = [str(cells[taken.arm, seed].path / taken.path) for taken in files]
                settings += [f"--{taken.key}={file}" for taken, file in zip(files, paths, strict=True)]
                if arm.name not in with_files:
                    with_files[arm.name] = paths, resolve(settings)
                # For another seed files have other names; nothing else changes.
                known, resolved = with_files[arm.name]
                config = _renamed(resolved, dict(zip(known, paths, strict=True))) | {"seed_everything": seed}
            path = runs / experiment / arm.name / f"seed{seed}"
            cell = Cell(
                arm=arm,
                seed=seed,
                path=path,
                command=[
                    *settings,
                    f"--runs={runs}",
                    f"--experiment={experiment}/{arm.name}",
                    f"--version={path.name}",
                ],
                config=config,
                identity={
                    "config": _plain(essence(config)),
                    # Where and on how many devices a run computes is no part of the essence; a claim may be about it.
                    "arm": _plain(arm.overrides),
                    "code": code_version(config, claim.metrics()),
                    "after": _after(parents),
                },
                parents=parents,
            )
            if all(parent.state is State.FINISHED for parent in parents):
                settle(claim, cell)
            cell.look()
            cells[arm.name, seed] = cell
    return list(cells.values())


def settle(claim: Claim, cell: Cell) -> None:
    """Gives a cell what it takes of the results of others, which have ended, once.

    Args:
        claim: the claim.
        cell: the cell; its command, config and identity are completed.

    Raises:
        ClaimError: what was measured gives no number, a file is missing, or the config does not take it.
    """
    parents = {parent.arm.name: parent for parent in cell.parents}

    def value(quantity: str, arm: str) -> float:
        if quantity in COSTS:
            return parents[arm].cost()[quantity]
        metric = quantity or claim.metric
        return parents[arm].value(metric, claim.at, claim.better) * claim.scale(metric)

    arguments = []
    for taken in cell.arm.after:
        if isinstance(taken, Content):
            arguments.append(f"--{taken.key}={json.dumps(_content(claim, cell, parents[taken.arm].path / taken.file))}")
        elif isinstance(taken, Searched):
            try:
                arguments.append(f"--{taken.key}={found(taken, parents[taken.arm].path, parents[taken.arm].config)}")
            except SearchFailed as error:
                raise claim.error(f"{cell.name}: {error}", *cell.arm.place, "after") from error
        elif isinstance(taken, Measured):
            number = taken.term.at(value)
            if not math.isfinite(number):
                raise claim.error(f"{cell.name}: {taken.text} is no number", *cell.arm.place, "after")
            # A key that has a whole number takes a whole one, such as the epochs that there is compute for.
            arguments.append(f"--{taken.key}={int(number) if _is_whole(cell.config, taken.key) else number}")
    if arguments and not set(arguments) <= set(cell.command):
        # As the last of what is no place of the run.
        end = next(i for i, argument in enumerate(cell.command) if argument.startswith("--runs="))
        cell.command[end:end] = arguments
        try:
            cell.config = resolve(cell.command[: end + len(arguments)])
        except ConfigError as error:
            raise claim.error(f"{cell.name}: {error}", *cell.arm.place, "after") from error
        cell.identity["config"] = _plain(essence(cell.config))


def _content(claim: Claim, cell: Cell, file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise claim.error(f"{cell.name}: {file} cannot be read: {error}", *cell.arm.place, "after") from error


def _renamed(config: Any, names: Mapping[str, str]) -> Any:
    """A config with other names of files."""
    if isinstance(config, dict):
        return {key: _renamed(value, names) for key, value in config.items()}
    if isinstance(config, list):
        return [_renamed(value, names) for value in config]
    return names.get(config, config) if isinstance(config, str) else config


def _is_whole(config: Any, key: str) -> bool:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return type(config) is int


def _after(parents: list[Cell]) -> str | None:
    if len(parents) > 1:
        return fingerprint({"parents": [parent.identity for parent in parents]})
    return fingerprint({"parent": parents[0].identity}) if parents else None


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """As it reads back from JSON."""
    return json.loads(json.dumps(config, default=str))


def _resolved(claim: Claim, base: list[str], extra: list[str]) -> dict[str, dict[str, Any]]:
    """Every arm's config; or an error with the line of what is wrong."""
    try:
        resolve(base)
    except ConfigError as error:
        raise claim.error(f"the config {' + '.join(claim.configs)}: {error}", "config") from error
    configs = {}
    for arm in claim.arms.values():
        for key in arm.overrides:
            if key in OWN_KEYS:
                hint = "list seeds under 'seeds'" if key == "seed_everything" else "compare sets it for every cell"
                raise claim.error(f"'{key}': {hint}", *_place(claim, arm, key))
        try:
            configs[arm.name] = resolve([*base, *arm.arguments(), *extra])
        except ConfigError as error:
            raise _blame(claim, arm, base, extra, str(error)) from error
    return configs


def _blame(claim: Claim, arm: Arm, base: list[str], extra: list[str], message: str) -> ClaimError:
    """The override that cannot be resolved: the first one without which all is well, or the arm as a whole."""
    given: list[str] = []
    for key, argument in zip(arm.overrides, arm.arguments(), strict=True):
        given.append(argument)
        try:
            resolve([*base, *given])
        except ConfigError as error:
            return claim.error(f"arm '{arm.name}': {error}", *_place(claim, arm, key))
    return ClaimError(f"{' '.join(extra)}: {message}")


def _place(claim: Claim, arm: Arm, key: str) -> tuple[str | int, ...]:
    for place in ((*arm.place, key), (*arm.place, "sweep", key), ("overrides", key)):
        if place in claim.lines:
            return place
    return arm.place


def missing_metric(claim: Claim, metric: str, arm: str, known: Collection[str]) -> ClaimError:
    """The error for a metric that an arm does not log."""
    place: tuple[str | int, ...] = ("metric",)
    if metric != claim.metric:
        found = [i for i, e in enumerate(claim.expectations) if any(q == metric for q, _ in e.quantities())]
        place = ("expect", found[0]) if ("expect", found[0]) in claim.lines else ("expect",)
    names = sorted(name for name in known if name.split("/")[0] in ("train", "val", "test"))
    near = difflib.get_close_matches(metric, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"it logs {', '.join(names)}"
    return claim.error(f"arm '{arm}' logs no metric '{metric}'; {hint}", *place)
