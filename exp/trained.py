"""A task with its weights and its data, before anything is done with it: what `export` and `exp.load` begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callbacks.reports import Source
from exp.checkpoint_contents import check_contents
from exp.checkpoint_io import read_checkpoint
from exp.cli import WHOLE, Cli
from exp.evaluation import output_folder
from exp.packaged_weights import class_names
from exp.usage import UsageError
from exp.weights import start_from, to_evaluate
from models.mistakes import Mistake

# What a checkpoint of a run with averaged weights has them in.
AVERAGED = "averaging_state"


@dataclass(frozen=True)
class Trained:
    """What a command has named.

    Args:
        cli: with the task, whose network has its weights and is in evaluation mode, and the data module.
        checkpoint: the file that the weights are from.
        content: what else is in it; empty for weights alone.
        names: of the classes; empty where nobody says.
    """

    cli: Cli
    checkpoint: Path
    content: dict[str, Any]
    names: list[str]

    def source(self) -> Source:
        """As predictions know it."""
        return Source(self.checkpoint, self.content, self.names, output_folder(self.cli, self.checkpoint, "validate"))


def trained(cli: Cli) -> Trained:
    """Puts the weights that a command names into its task; its data look as these expect.

    Args:
        cli: with `--ckpt_path`, or `--weights`.

    Raises:
        UsageError: neither is given, or they do not fit.
    """
    checkpoint = to_evaluate(cli)
    content = read_checkpoint(checkpoint) if cli.config.ckpt_path else {}
    check_contents(checkpoint, content)
    model, data = cli.model, cli.datamodule
    try:
        if content:
            model.on_load_checkpoint(content)
            if AVERAGED in content:
                start_from(cli, checkpoint, WHOLE)
            else:
                model.load_state_dict(content["state_dict"], strict=model.strict_loading)
    except (Mistake, RuntimeError) as error:
        raise UsageError(f"{checkpoint}: {' '.join(str(error).split())}") from error
    model.eval()
    names = list(content.get("class_names") or class_names(checkpoint) or data.class_names)
    return Trained(cli, checkpoint, content, names)
