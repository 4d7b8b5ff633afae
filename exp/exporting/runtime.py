"""A file of `export` in the place of the network that it was made of, to be evaluated as that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from datamodules import Pixels
from exp.cli import Cli
from exp.exporting.formats import Runner, runner_of
from exp.exporting.graph import Normalisation
from exp.pixels import hand_over_checkpoint
from exp.usage import UsageError
from lightning_modules.exporting import Exportable
from models.mistakes import Mistake


class FileNetwork(nn.Module):
    """What a file says, as the task's network would say it.

    Args:
        runner: the file.
        task: whose network it is.
    """

    # Nothing can be counted of what runs elsewhere.
    hides_operators = True

    def __init__(self, runner: Runner, task: Exportable) -> None:
        super().__init__()
        self.runner = runner
        self.returned = task.returned
        self.normalisation = Normalisation(Pixels.stated(runner.manifest.pixels))

    @override
    def forward(self, images: Tensor | list[Tensor], *rest: Any) -> Any:
        """What the network returns for normalised images [B, 3, H, W], or a list of images [3, h, w] of any sizes."""
        if isinstance(images, Tensor):
            return self.returned(self._answer(images), (images, *rest))
        results = []
        for i, image in enumerate(images):
            one = ([image], *(each[i : i + 1] for each in rest))
            results += self.returned(self._answer(image[None]), one)
        return results

    def _answer(self, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            values = self.normalisation.undone(images.detach().float().cpu())
        return {name: each.to(images.device) for name, each in self.runner(values).items()}


def take_file(cli: Cli) -> Path:
    """Puts the file that `--runtime` names in the place of the task's network; data look as it expects.

    Raises:
        UsageError: a checkpoint is named, too, or the config expects other pixels.
        Mistake: it is no file of `export`, or the task evaluates more than one network.
    """
    path = Path(cli.config.runtime)
    if cli.config.ckpt_path is not None:
        raise UsageError("--runtime and --ckpt_path: a file or a checkpoint is evaluated, not both")
    runner = runner_of(path)(path)
    put(cli.model, runner)
    hand_over_checkpoint(cli, path, {"pixels": dict(runner.manifest.pixels)}, cli.trainer.is_global_zero)
    return path


def put(task: Any, runner: Runner) -> None:
    """Puts a file in the place of a task's network.

    Raises:
        Mistake: the task evaluates more than one network.
    """
    if not isinstance(task, Exportable) or task.teacher_pairs():  # type: ignore[attr-defined]
        raise Mistake(f"{type(task).__name__} evaluates more than one network, and {runner.path} holds one")
    task_with_network: Any = task
    task_with_network.network = FileNetwork(runner, task)
