"""A trained network in Python: `model = exp.load("runs/mine"); model("photo.jpg")`."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor, nn

from callbacks.reports import Predictions, predictions_of
from datamodules import DataModule, Pixels
from exp.cli import Cli
from exp.quiet import silence
from exp.trained import Trained, trained
from exp.usage import UsageError
from exp.words import Unmeant, spelled_out
from lightning_modules.alone import alone, predicted
from models.mistakes import Mistake

Picture: TypeAlias = str | os.PathLike | np.ndarray | Image.Image


class Model:
    """A network with its weights, its data's way of making pixels and its task's way of making predictions.

    Args:
        made: what was trained.
        predictions: what says predictions.
        device: where it runs.

    Attributes:
        network: the network, in evaluation mode; it takes what `transform` makes.
        class_names: of the classes, or of what else it tells apart; empty where nobody says.
    """

    def __init__(self, made: Trained, predictions: Predictions, device: torch.device) -> None:
        self._task, self._data, self._predictions = made.cli.model.to(device), made.cli.datamodule, predictions
        self.class_names = made.names
        self.network: nn.Module = self._task.network

    @property
    def pixels(self) -> Pixels:
        """How images look to the network."""
        return self._data.pixels

    def transform(self, image: Picture) -> Tensor:
        """An image as the network takes it.

        Args:
            image: a file, an array uint8 [H, W, 3] or [H, W], or an image of Pillow's.

        Returns:
            float32 [3, h, w], normalised, where the network is.
        """
        (batch,) = self._batches([_read(image)])
        with alone(self._task, self._data):
            return self._task.on_device(batch)["image"][0]

    def __call__(self, images: Picture | Sequence[Picture]) -> Any:
        """What `predict` writes of images.

        Args:
            images: one, as of `transform`, or a list of them; a folder stands for all images in it.

        Returns:
            A dict for an image, a list of dicts for a list or a folder.

        Raises:
            Mistake: something that is no image.
            datamodules.DataError: a file that cannot be read.
        """
        if several := isinstance(images, Sequence) and not isinstance(images, str):
            given = [_read(each) for each in images]
        else:
            given = [_read(images)]
        if not given:
            return []
        answers = predicted(self._task, self._batches(given), self._data)
        entries = self._predictions.entries(answers, self._task, self._data)
        one = not several and not (isinstance(given[0], Path) and given[0].is_dir())
        return entries[0] if one else entries

    def _batches(self, given: list[Path | np.ndarray]) -> Any:
        self._data.predict_paths = given
        self._data.setup("predict")
        return self._data.predict_dataloader()


def load(
    run: str | os.PathLike,
    device: str | torch.device | None = None,
    runs: str | os.PathLike = "runs",
    trust: Sequence[str] = (),
) -> Model:
    """Loads what was trained.

    Args:
        run: a run's directory, an experiment below `runs`, `NAME/best`, `NAME/last`, a checkpoint, or a config that
            names its weights, as `exp predict` takes them.
        device: where it runs; by default a GPU where there is one.
        runs: the folder of all runs.
        trust: packages whose classes the checkpoint may name, too.

    Returns:
        What images are given to.

    Raises:
        Mistake: there is no such run, or it holds nothing that predicts for images.
    """
    silence()
    try:
        argv = spelled_out("predict", [os.fspath(run), f"--runs={os.fspath(runs)}"])
        argv += [f"--trust={package}" for package in trust]
        # What a command says in a line, a program gets as an error.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()), isolate_rng():
            made = trained(Cli([*argv, "--trainer.accelerator=cpu"], "predict"))
    except UsageError as error:
        raise Mistake(error.message) from None
    except Unmeant as error:
        raise Mistake(str(error).removeprefix("predict ")) from None
    task, data = made.cli.model, made.cli.datamodule
    kinds = predictions_of(type(task))
    if not kinds or not isinstance(data, DataModule):
        raise Mistake(f"{made.checkpoint}: nothing says what {type(task).__name__} predicts for images")
    # A process of a loader for each call would cost more than the call.
    data.num_workers = 0
    predictions = kinds[0]()
    predictions.prepare(made.cli.trainer, task, made.source())
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Model(made, predictions, torch.device(chosen))


def _read(image: Picture) -> Path | np.ndarray:
    """A file's path, or an RGB array uint8 [H, W, 3].

    Raises:
        Mistake: it is neither.
    """
    if isinstance(image, str | os.PathLike):
        return Path(image)
    array = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, 2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise Mistake(
            f"an image is a file, one of Pillow's or an array uint8 [H, W, 3], not {array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(array)
