"""Weights without a run: of a converted official checkpoint, or of another run."""

from __future__ import annotations

from pathlib import Path

from exp.cli import Cli, UsageError
from exp.convert import ConvertError, read
from models import official


def start_from(cli: Cli, path: Path) -> list[str]:
    """Puts weights into the command's network.

    A classifier of another number of classes stays as it was initialised.

    Args:
        cli: the command.
        path: an exp checkpoint, or what `convert` wrote.

    Returns:
        The names of the parameters that stayed.

    Raises:
        UsageError: the file does not fit, or is in an official layout.
    """
    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file")
    try:
        checkpoint = read(path)
        # Of a run with averaged weights, what its evaluation used.
        state = official.unwrap(checkpoint, ema="averaging_state" in checkpoint)
        if official.foreign(state):
            raise UsageError(f"--weights {path}: an official layout; translate it with `python -m exp convert` first")
        return official.load(cli.model.network, state)
    except (ConvertError, official.LayoutError) as error:
        raise UsageError(f"--weights {path}: {error}") from error


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
    if missing := start_from(cli, path):
        raise UsageError(
            f"--weights {path}: another number of classes, so it has nothing for {official.some(missing)}; train it by "
            "`python -m exp fit --weights`, or set the network's num_classes"
        )
    return path
