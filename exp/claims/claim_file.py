"""The claim file: what it may say, and one message with the line for what it says wrong."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from exp.claims.expectations import Expectation, ExpectationError, nearest, parse
from exp.claims.seeds import Seeds, SeedsError, read_seeds
from exp.claims.taken import After, Measured, Taken, TakenError, read_taken
from exp.trust import read_yaml

KEYS = {
    "claim": "one sentence that the verdict answers",
    "source": "where it is claimed",
    "config": "the config file of every arm, or a list of them",
    "metric": "what is compared, e.g. val/top1 or test/top1",
    "at": "which validation counts: last (default) or best",
    "better": "max (default) or min",
    "unit": "percent: values (but losses and multiply-adds) are multiplied by 100, margins are in points",
    "seeds": "a list, or {first: 6, most: 16}: as many as settle it, looking at the first ones and after every `block`",
    "minutes": "how long it may take on two CPU cores",
    "overrides": "what every arm changes in the config",
    "arms": "name -> what this arm changes in the config",
    "expect": "one inequality or several",
    "notes": "what a reader of the result should know",
}
REQUIRED = ("claim", "config", "metric", "seeds", "arms", "expect")
ARM_KEYS = ("after", "sweep", "reference")
_NAME = re.compile(r"[A-Za-z_][\w.]*\Z")

Place = tuple[str | int, ...]


class ClaimError(ValueError):
    """A claim file that cannot be run; the message names the file, the line and the remedy."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Args:
        name: as `expect:` calls it.
        overrides: dotted config key -> value, the claim's common ones first.
        place: where the file defines it.
        after: what it takes from other arms.
    """

    name: str
    overrides: dict[str, Any]
    place: Place
    after: tuple[Taken, ...] = ()

    @property
    def parents(self) -> list[str]:
        """The arms that have to end before it starts."""
        return list(dict.fromkeys(arm for taken in self.after for arm in taken.arms))

    @property
    def starts_from(self) -> list[str]:
        """The arms whose weights it starts from."""
        return [taken.arm for taken in self.after if isinstance(taken, After) and not taken.file]

    def arguments(self) -> list[str]:
        """The overrides as `fit` takes them."""
        return [f"--{key}={written(value)}" for key, value in self.overrides.items()]


@dataclass(frozen=True)
class Claim:
    """A claim file, read and checked as far as that goes without the config that it names.

    Args:
        path: the file.
        claim: the sentence.
        configs: config files of every arm, in order.
        metric: the compared metric.
        seeds: those that it may use, and its looks.
        arms: by name; those that start from another come after it.
        expectations: what `expect:` says.
        reference: the arm that differences are taken from.
        source: where it is claimed.
        at: which validation counts.
        better: whether more of the metric is better.
        percent: whether values are shown times 100.
        notes: for the reader of the report.
        minutes: how long it may take on two CPU cores; None where the file says nothing.
        lines: where in the file what stands.
    """

    path: Path
    claim: str
    configs: list[str]
    metric: str
    seeds: Seeds
    arms: dict[str, Arm]
    expectations: list[Expectation]
    reference: str
    source: str = ""
    at: Literal["last", "best"] = "last"
    better: Literal["max", "min"] = "max"
    percent: bool = False
    notes: str = ""
    minutes: float | None = None
    lines: dict[Place, int] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The name of its runs and its report: the file's."""
        return self.path.stem

    @property
    def unit(self) -> str:
        """What follows a value."""
        return " %" if self.percent else ""

    def error(self, message: str, *place: str | int) -> ClaimError:
        """An error that names the line of a place in the file."""
        return _error(self.path, self.lines, message, place)

    @property
    def curve_metric(self) -> str:
        """The metric while a cell trains: only validation is logged then, the test comes at the end."""
        return self.metric.replace("test/", "val/")

    def scale(self, metric: str) -> float:
        """What a metric's values are multiplied by: with `unit: percent` 100, but for what is no share."""
        return 100.0 if self.percent and is_share(metric) else 1.0

    def worst(self, metric: str) -> float:
        """What counts for the metric of a run that diverged: worse than any number; for compute, nothing is known."""
        name = metric.split("/")[-1]
        if "/" not in metric or counts_compute(metric) or "compute" in name:
            return math.nan
        less = self.better == "min" if metric == self.metric else "loss" in name
        return math.inf if less else -math.inf

    def metrics(self) -> dict[str, set[str]]:
        """Every metric that must be measured -> the arms that it is needed of."""
        needed: dict[str, set[str]] = {self.metric: set(self.arms)}
        for expectation in self.expectations:
            for quantity, arm in expectation.quantities():
                if "/" in quantity:
                    needed.setdefault(quantity, set()).add(arm)
        for taken in (taken for arm in self.arms.values() for taken in arm.after if isinstance(taken, Measured)):
            for quantity, arm in taken.term.quantities():
                if "/" in quantity:
                    needed.setdefault(quantity, set()).add(arm)
        return needed


def written(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def counts_compute(metric: str) -> bool:
    """Whether a metric is a number of multiply-adds, which is counted exactly."""
    name = metric.split("/")[-1]
    return "macs" in name and not name.endswith("_saved")


def is_share(metric: str) -> bool:
    """Whether `unit: percent` is a metric's: all but losses and multiply-adds."""
    return not metric.split("/")[-1].startswith("loss") and not counts_compute(metric)


def read_claim(path: Path) -> Claim:
    """Reads a claim file.

    Raises:
        ClaimError: the file is missing or says something that it cannot mean.
    """
    try:
        text = path.read_text()
    except OSError as error:
        beside = [str(p) for p in sorted(path.parent.glob("*.yaml"))]
        raise ClaimError(f"{path}: no such claim file{nearest(str(path), beside) if beside else ''}") from error
    except UnicodeDecodeError as error:
        raise ClaimError(f"{path}: no text in UTF-8 ({error}); save it as such") from error
    try:
        content = read_yaml(text)
        places = list(_places(yaml.compose(text, Loader=yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise ClaimError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ClaimError(f"{path}: a claim file is a mapping with the keys {', '.join(REQUIRED)}")
    lines: dict[Place, int] = {}
    for place, line in places:
        if place in lines:
            # YAML would keep the last one and say nothing.
            raise ClaimError(f"{path}, line {line}: '{place[-1]}' is already on line {lines[place]}")
        lines[place] = line
    return _Reader(path, content, lines).claim()


def _places(node: yaml.Node | None, place: Place = ()) -> Iterator[tuple[Place, int]]:
    """Every key and list entry, and its line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, str(key.value)), key.start_mark.line + 1
            yield from _places(value, (*place, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*place, i), value.start_mark.line + 1
            yield from _places(value, (*place, i))


def _error(path: Path, lines: dict[Place, int], message: str, place: Place) -> ClaimError:
    while place and place not in lines:
        place = place[:-1]
    return ClaimError(f"{path}, line {lines.get(place, 1)}: {message}")


class _Reader:
    """Checks the content of a claim file, key by key."""

    def __init__(self, path: Path, content: dict[str, Any], lines: dict[Place, int]) -> None:
        self.path, self.content, self.lines = path, content, lines

    def error(self, message: str, *place: str | int) -> ClaimError:
        return _error(self.path, self.lines, message, place)

    def claim(self) -> Claim:
        for key in self.content:
            if key not in KEYS:
                raise self.error(f"unknown key '{key}'{nearest(str(key), KEYS)}", str(key))
        for key in REQUIRED:
            if self.content.get(key) in (None, "", [], {}):
                raise self.error(f"'{key}' is missing: {KEYS[key]}")
        configs = self.content["config"]
        configs = [str(c) for c in configs] if isinstance(configs, list) else [str(configs)]
        for config in configs:
            if not Path(config).is_file():
                near = [str(p) for p in sorted(Path(config).parent.glob("*.yaml"))]
                raise self.error(f"no such config file: {config}{nearest(config, near) if near else ''}", "config")
        seeds = self._seeds()
        arms, reference = self._arms()
        return Claim(
            path=self.path,
            claim=self._text("claim"),
            configs=configs,
            metric=self._metric(),
            seeds=seeds,
            arms=arms,
            expectations=self._expectations(arms),
            reference=reference,
            source=self._text("source"),
            at=self._choice("at", ("last", "best")),  # type: ignore[arg-type]
            better=self._choice("better", ("max", "min")),  # type: ignore[arg-type]
            percent=self._choice("unit", ("", "percent")) == "percent",
            notes=self._text("notes"),
            minutes=self._minutes(),
            lines=self.lines,
        )

    def _text(self, key: str) -> str:
        value = self.content.get(key, "")
        if not isinstance(value, str):
            raise self.error(f"'{key}' is text: {KEYS[key]}", key)
        return " ".join(value.split())

    def _choice(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.content.get(key, choices[0])
        if value not in choices:
            raise self.error(f"'{key}' is {' or '.join(c for c in choices if c)}, not '{value}'", key)
        return value

    def _metric(self) -> str:
        metric = self._text("metric")
        if metric.split("/")[0] not in ("train", "val", "test") or "/" not in metric:
            raise self.error(f"a metric is train/..., val/... or test/..., not '{metric}'", "metric")
        return metric

    def _seeds(self) -> Seeds:
        try:
            return read_seeds(self.content["seeds"])
        except SeedsError as error:
            raise self.error(str(error), "seeds", error.key) from error

    def _minutes(self) -> float | None:
        minutes = self.content.get("minutes")
        if minutes is not None and (type(minutes) not in (int, float) or not 0 < minutes < math.inf):
            raise self.error(f"'minutes' is a number of minutes, not '{minutes}'", "minutes")
        return minutes

    def _mapping(self, value: Any, what: str, *place: str | int) -> dict[str, Any]:
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.error(f"{what} is a mapping from config keys to values, not '{value}'", *place)
        for key in value:
            if not isinstance(key, str):
                raise self.error(f"{what}: a config key is text such as model.optimizer.lr, not {key}", *place)
        return value

    def _arms(self) -> tuple[dict[str, Arm], str]:
        common = self._mapping(self.content.get("overrides"), "'overrides'", "overrides")
        given = self.content["arms"]
        if not isinstance(given, dict):
            raise self.error("'arms' maps names to what each arm changes", "arms")
        arms: dict[str, Arm] = {}
        references = []
        names = [member for name, content in given.items() for member in self._names(str(name), content)]
        for name, content in given.items():
            content = self._mapping(content, f"arm '{name}'", "arms", str(name))
            if not isinstance(name, str) or not _NAME.match(name):
                raise self.error(f"an arm's name is letters, digits, _ and ., not '{name}'", "arms", str(name))
            own = {k: v for k, v in content.items() if k not in ARM_KEYS}
            place = ("arms", name)
            try:
                after = read_taken(content.get("after"), names)
            except TakenError as error:
                raise self.error(str(error), *place, "after", *error.place) from error
            members = list(self._members(name, content, place))
            for member, swept in members:
                if member in arms:
                    raise self.error(f"two arms are called '{member}'", *place)
                arms[member] = Arm(member, common | own | swept, place, after)
            if content.get("reference", False) not in (True, False):
                raise self.error("'reference' is true or false", *place, "reference")
            if content.get("reference"):
                references.append((members[0][0], place))
        if len(references) > 1:
            raise self.error("only one arm is the reference", *references[1][1], "reference")
        return self._in_order(arms), references[0][0] if references else next(iter(arms))

    def _names(self, name: str, content: Any) -> list[str]:
        content = self._mapping(content, f"arm '{name}'", "arms", name)
        return [member for member, _ in self._members(name, content, ("arms", name))]

    def _members(self, name: str, content: dict[str, Any], place: Place) -> Iterator[tuple[str, dict[str, Any]]]:
        """The arm itself, or one arm for each value that it sweeps over."""
        if "sweep" not in content:
            yield name, {}
            return
        sweep = self._mapping(content["sweep"], "'sweep'", *place, "sweep")
        for key, values in sweep.items():
            if not isinstance(values, list) or not values:
                raise self.error(f"'sweep' gives '{key}' a list of values", *place, "sweep", key)
        for values in itertools.product(*sweep.values()):
            label = "_".join(re.sub(r"[^\w.]+", "_", written(value)).strip("_") for value in values)
            yield f"{name}_{label}", dict(zip(sweep, values, strict=True))

    def _in_order(self, arms: dict[str, Arm]) -> dict[str, Arm]:
        """The arms, each behind the one that it starts from."""
        ordered: dict[str, Arm] = {}

        def add(arm: Arm, behind: tuple[str, ...]) -> None:
            if arm.name in ordered:
                return
            if arm.name in behind:
                raise self.error(f"arms wait for each other: {' after '.join((*behind, arm.name))}", *arm.place)
            for parent in arm.parents:
                if parent not in arms:
                    raise self.error(f"no arm '{parent}'{nearest(parent, arms)}", *arm.place, "after")
                add(arms[parent], (*behind, arm.name))
            ordered[arm.name] = arm

        for arm in arms.values():
            add(arm, ())
        return ordered

    def _expectations(self, arms: dict[str, Arm]) -> list[Expectation]:
        expect = self.content["expect"]
        lines = list(enumerate(expect)) if isinstance(expect, list) else [(None, expect)]
        found = []
        for i, line in lines:
            place = ("expect",) if i is None else ("expect", i)
            if not isinstance(line, str):
                raise self.error(f"an expectation is text such as 'a > b', not '{line}'", *place)
            try:
                found += parse(line, arms)
            except ExpectationError as error:
                raise self.error(str(error), *place) from error
        return found
