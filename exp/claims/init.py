"""`compare --init`: a first draft of a claim file, from two configs or more, and nothing is asked."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from callbacks.whole_files import write_whole
from exp.claims.cells import OWN_KEYS
from exp.claims.claim_file import ClaimError
from exp.claims.config_changes import as_arguments, changes_between
from exp.claims.expectations import COSTS, nearest
from exp.claims.first_batch import Trial, try_first_batch
from exp.cli import resolve
from exp.quiet import silence
from exp.trust import read_yaml
from exp.usage import ConfigError

_WIDTH = 110
_AND_DATA = "; its data are others, too, so that a difference may come from these."


@dataclass(frozen=True)
class Side:
    """One of the configs, and what an arm has to say to turn the first config into it.

    Args:
        path: the file.
        name: of its arm.
        arguments: what `fit` would be given.
        config: what that resolves to.
        changes: dotted config key -> value; empty for the first config.
    """

    path: Path
    name: str
    arguments: list[str]
    config: dict[str, Any]
    changes: dict[str, Any]


def init(paths: Sequence[Path], output: Path | None, extra: Sequence[str] = ()) -> Path:
    """Writes a claim file: the first config is what all arms share, and an arm is what another one has instead.

    Args:
        paths: config files; one that names no model of its own changes the first one.
        output: the file to write (default: named after the arms, in the current folder).
        extra: `--key=value`, which every arm gets.

    Returns:
        The file.

    Raises:
        ClaimError: a config that cannot be read or does not differ, nothing to compare by, or a file that is there.
    """
    silence()
    overrides = _overrides(extra)
    sides = read_sides(paths)
    path = output or Path("_vs_".join(side.name for side in reversed(sides)) + ".yaml")
    if path.exists() or path.is_symlink():
        raise ClaimError(f"{path}: exists already, and is not overwritten; name another with -o")
    if not path.parent.is_dir():
        raise ClaimError(f"{path}: there is no folder {path.parent}")
    _check_overrides(sides, overrides, extra)
    write_whole(path, draft(sides, measure(sides, extra), overrides, path))
    return path


def _overrides(extra: Sequence[str]) -> dict[str, Any]:
    found = {}
    for argument in extra:
        key, _, value = argument.removeprefix("--").partition("=")
        if key in OWN_KEYS:
            raise ClaimError(f"--{key}: compare sets it for every cell")
        try:
            found[key] = read_yaml(value)
        except yaml.YAMLError:
            found[key] = value
    return found


def _check_overrides(sides: Sequence[Side], overrides: Mapping[str, Any], extra: Sequence[str]) -> None:
    try:
        for side in sides:
            # In a claim, an arm's own changes come after those of all.
            resolve([f"--config={sides[0].path}", *as_arguments({**overrides, **side.changes})])
    except ConfigError as error:
        raise ClaimError(f"{' '.join(extra)}: {error}") from error


def read_sides(paths: Sequence[Path]) -> list[Side]:
    """The configs, and in what each differs from the first.

    Raises:
        ClaimError: a config that cannot be read, or that says the same as the first one; or fewer than two.
    """
    if len(paths) < 2:
        raise ClaimError("--init compares two configs or more: --init A.yaml B.yaml")
    first = paths[0]
    contents = [_content(path) for path in paths]
    if not _names_model(contents[0]):
        raise ClaimError(f"{first} names no model: a config that changes another goes after the one it changes")
    base = _resolved([first])
    names = _names(paths)
    sides = [Side(first, names[0], [f"--config={first}"], base, {})]
    for path, content, name in zip(paths[1:], contents[1:], names[1:], strict=True):
        layers = [path] if _names_model(content) else [first, path]
        config = _resolved(layers)
        said = content if layers == [path] else _merged(contents[0], content)
        changes = changes_between(first, base, config, said)
        if changes is None:
            raise ClaimError(f"{path} cannot be told as changes of {first}; write what is shared into a third config")
        if not changes:
            raise ClaimError(f"{path} says the same as {first}: there is nothing to compare")
        sides.append(Side(path, name, [f"--config={layer}" for layer in layers], config, changes))
    return sides


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path.read_text())
    except OSError as error:
        if path.exists():
            raise ClaimError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from error
        beside = [str(other) for other in sorted(path.parent.glob("*.yaml"))]
        raise ClaimError(f"no such config file: {path}{nearest(str(path), beside) if beside else ''}") from error
    except UnicodeDecodeError as error:
        raise ClaimError(f"{path}: no text in UTF-8 ({error}); save it as such") from error
    except yaml.YAMLError as error:
        raise ClaimError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ClaimError(f"{path}: a config is a mapping with the keys model, data and trainer")
    if "arms" in content and "expect" in content:
        raise ClaimError(f"{path} is a claim already: python -m exp compare --config {path}")
    return content


def _names_model(content: Mapping[str, Any]) -> bool:
    model = content.get("model")
    return isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)


def _resolved(layers: Sequence[Path]) -> dict[str, Any]:
    try:
        return resolve([f"--config={layer}" for layer in layers])
    except ConfigError as error:
        # A file that names no model is read as a change of the first one.
        where = f"{layers[-1]}, on top of {layers[0]}" if len(layers) > 1 else str(layers[0])
        raise ClaimError(f"{where}: {error}") from error


def _merged(base: Any, over: Any) -> Any:
    """What two config files say together, as the parser merges them."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each arm: the file's, with its folder's where files of several folders are called alike."""
    stems = [path.stem for path in paths]
    alike = len(set(stems)) < len(stems)
    found: list[str] = []
    for path in paths:
        words = [path.resolve().parent.name, path.stem] if alike else [path.stem]
        name = re.sub(r"[^A-Za-z0-9_]+", "_", "_".join(words)).strip("_")
        if not name[:1].isalpha() or name in COSTS:
            name = f"arm_{name}".rstrip("_")
        found.append(f"{name}_{len(found) + 1}" if name in found else name)
    return found


@dataclass(frozen=True)
class Measure:
    """What the arms are compared by.

    Args:
        metric: its name.
        better: which values are better, `max` or `min`.
        percent: whether it is a share.
        others: the other metrics that all arms log.
        untried: why an arm could not be tried, so that what it logs is not known.
    """

    metric: str
    better: str
    percent: bool
    others: list[str]
    untried: str = ""


def measure(sides: Sequence[Side], extra: Sequence[str] = ()) -> Measure:
    """Tries one batch of each config, and chooses the metric that says which of its checkpoints is best.

    Raises:
        ClaimError: a config whose classes cannot be built, or no metric that is every arm's.
    """
    trials = [try_first_batch([*side.arguments, *extra]) for side in sides]
    for side, trial in zip(sides, trials, strict=True):
        if trial.problem and trial.monitor is None:
            raise ClaimError(f"{side.path}: {trial.problem}")
    return _chosen(sides, trials)


def _chosen(sides: Sequence[Side], trials: Sequence[Trial]) -> Measure:
    untried = next((f"{side.path}: {t.problem}" for side, t in zip(sides, trials, strict=True) if t.problem), "")
    classes = {side.config["model"]["class_path"] for side in sides}
    monitors = [trial.monitor for trial in trials if trial.monitor]
    if untried:
        common: set[str] = set()
        fits = len(set(monitors)) == 1 or (monitors and len(classes) == 1)
    else:
        common = set.intersection(*(set(trial.metrics) for trial in trials))
        monitors = [monitor for monitor in monitors if monitor in common]
        fits = bool(monitors)
    if not fits:
        each = ", ".join(f"{side.path} by {trial.monitor}" for side, trial in zip(sides, trials, strict=True))
        raise ClaimError(f"no metric to compare by: each is judged by another one ({each})")
    metric = monitors[0]
    better = next(trial.mode for trial in trials if trial.monitor == metric)
    values = [trial.metrics[metric] for trial in trials if metric in trial.metrics]
    ours = all(name.startswith("lightning_modules.") for name in classes)
    share = not any(value < 0 or value > 1 for value in values) if values else ours
    named = sorted(name for name in common - {metric} if name.split("/")[0] in ("train", "val", "test"))
    return Measure(metric, better, better == "max" and share, named, untried)


def draft(sides: Sequence[Side], by: Measure, overrides: Mapping[str, Any], path: Path) -> str:
    """The text of the claim file.

    Args:
        sides: the configs, the reference first.
        by: what they are compared by.
        overrides: what every arm changes.
        path: the file, for the commands in it.
    """
    first, *others = sides
    sign = ">" if by.better == "max" else "<"
    names = " and ".join(side.name for side in others)
    reaches = "reach" if len(others) > 1 else "reaches"
    how = "higher" if by.better == "max" else "lower"
    expectations = [f"{side.name} {sign} {first.name}" for side in others]
    lines = [
        "# A first draft: say what you believe before anything runs. docs/claims.md explains all keys.",
        f"#   python -m exp compare --config {path} --dry-run   # what it would run",
        f"#   python -m exp compare --config {path} --jobs 2    # runs it; again: goes on where it was stopped",
        "",
        "# The sentence that the verdict answers.",
        *_yaml({"claim": f"{names} {reaches} a {how} {by.metric} than {first.name}."}),
        "# What all arms share; `overrides: {trainer.max_epochs: 5}` would change it for all of them.",
        *_yaml({"config": str(first.path)}),
        *(_yaml({"overrides": dict(overrides)}) if overrides else []),
        *_comment(_about_metric(first, by)),
        *_yaml({"metric": by.metric}),
    ]
    if by.metric.startswith("val/"):
        lines += ["# Which validation counts: the `last` one, or the `best` one.", "at: last"]
    lines += ["# Which values are better: `max` or `min`.", *_yaml({"better": by.better})]
    if by.percent:
        lines.append("# Values are shares: shown times 100, and margins in points. Remove it for what is no share.")
        lines.append("unit: percent")
    lines += [
        "# Looks after the first seeds, then after every few more, and stops as soon as all is settled.",
        "seeds: {first: 6, most: 16}",
        "# What you are ready to spend, in minutes: a published result that took more than twice that is refused.",
        "# minutes: 60",
        "# What each arm changes, as `key: value` of the command line.",
        "arms:",
        f"  # {first.path} as it is; differences are taken from it.",
        f"  {first.name}: {{reference: true}}",
    ]
    for side in others:
        lines.append(f"  # What {side.path} has instead{_AND_DATA if 'data' in side.changes else '.'}")
        lines += _yaml({side.name: side.changes}, "  ")
    lines += [
        *_comment(
            f"One inequality, or a list of them. With a margin: {others[0].name} {sign} {first.name} "
            f"{'+' if sign == '>' else '-'} {1 if by.percent else 0.1}; of what it costs: "
            f"macs({others[0].name}) <= 1.05 * macs({first.name})."
        ),
        *_yaml({"expect": expectations if len(expectations) > 1 else expectations[0]}),
    ]
    return "\n".join(lines) + "\n"


def _about_metric(first: Side, by: Measure) -> str:
    said = f"What is compared: the metric that chooses the best checkpoint of {first.path}. val/... is of a "
    said += "validation, test/... of the best checkpoint."
    if by.untried:
        # The rest of a long message says what to do, and `compare` says it again.
        return f"{said} What else is logged is not known here: {textwrap.shorten(by.untried, 160, placeholder=' ...')}"
    return f"{said} All arms log these, too: {', '.join(by.others)}" if by.others else said


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


class _Representer(yaml.representer.SafeRepresenter):
    """Writes a value that occurs twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(content: dict[str, Any], indent: str = "") -> list[str]:
    """The lines of a mapping; what is in it stands in one line where it holds only plain values."""
    node = _Representer(default_flow_style=None, sort_keys=False).represent_data(content)
    node.flow_style = False
    for _, value in node.value:
        if isinstance(value, yaml.MappingNode) and len(value.value) > 1:
            value.flow_style = False
    text = yaml.serialize(node, Dumper=yaml.SafeDumper, width=_WIDTH, allow_unicode=True)
    return textwrap.indent(text, indent).rstrip().splitlines()
