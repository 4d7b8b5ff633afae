"""Weights without a run: of a converted official checkpoint, or of another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exp.cli import Cli, UsageError
from exp.convert import ConvertError, read
from models import official


@dataclass(frozen=True)
class Start:
    """What of a network and of weights did not meet.

    Args:
        absent: Names of the parameters and buffers that the weights have nothing for, by part of the network.
        spare: Names of the weights that the network has no place for, by part.
        classifier: Names of the parameters of a classifier of another number of classes.
    """

    absent: Mapping[str, list[str]]
    spare: Mapping[str, list[str]]
    classifier: list[str]

    def told(self) -> str:
        """What starts afresh and what is left out, in one line; empty if there is nothing of the kind."""
        told = []
        if self.absent:
            told.append(f"starting afresh: {_listed(self.absent)}")
        if self.spare:
            told.append(f"left out: {_listed(self.spare)}")
        if self.classifier:
            told.append(f"another number of classes, so {', '.join(self.classifier)} start afresh")
        return "; ".join(told)


def start_from(cli: Cli, path: Path) -> Start:
    """Puts weights into the command's network.

    A classifier of another number of classes stays as it was initialised, and so do the parts that the network says a
    training may start without (`models.official.absent_parts`).

    Args:
        cli: the command.
        path: an exp checkpoint, or what `convert` wrote.

    Returns:
        What stayed, and what was left out.

    Raises:
        UsageError: the file does not fit, or is in an official layout.
    """
    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file")
    network = cli.model.network
    try:
        checkpoint = read(path)
        # Of a run with averaged weights, what its evaluation used.
        state = official.unwrap(checkpoint, ema="averaging_state" in checkpoint)
    except (ConvertError, official.LayoutError) as error:
        raise UsageError(f"--weights {path}: {error}") from error
    absent, spare = official.absent_parts(network, state), official.spare_parts(network, state)
    try:
        stayed = official.load(network, state)
    except official.LayoutError as error:
        # Asked only now: an official layout may be that of a network of timm's, which takes it as it is.
        if official.foreign(state):
            message = "an official layout; translate it with `python -m exp convert` first"
            raise UsageError(f"--weights {path}: {message}") from error
        raise UsageError(f"--weights {path}: {error}") from error
    expected = {name for names in absent.values() for name in names}
    return Start(absent, spare, [name for name in stayed if name not in expected])


def to_evaluate(cli: Cli) -> Path:
    """What `validate`, `test` or `predict` works with: `--ckpt_path`, or `--weights`, which are put into the network.

    Returns:
        The file.

    Raises:
        UsageError: neither or both are given, or weights do not fit the whole network.
    """
    checkpoint, weights = cli.config.ckpt_path, cli.config.weights
    if (checkpoint is None) == (weights is None):
        raise UsageError(
            f"{cli.command} needs --ckpt_path, a checkpoint of a run, or a config and --weights of `convert`"
        )
    if checkpoint is not None:
        return Path(checkpoint)
    path = Path(weights)
    start = start_from(cli, path)
    kinds = {"missing": start.absent, "without a place": start.spare}
    if strange := [f"{kind}: {_listed(parts)}" for kind, parts in kinds.items() if parts]:
        raise UsageError(
            f"--weights {path}: only a start for a training of this network ({'; '.join(strange)}); train it by "
            "`python -m exp fit --weights`, or give the network the options of the one that the weights are of"
        )
    if start.classifier:
        raise UsageError(
            f"--weights {path}: another number of classes, so it has nothing for {official.some(start.classifier)}; "
            "train it by `python -m exp fit --weights`, or set the network's num_classes"
        )
    return path


def _listed(parts: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{part} ({len(names)} tensors)" for part, names in parts.items())
