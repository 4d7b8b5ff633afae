"""What every report shares: whose outcomes it reads, where it puts what it makes, and when."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.whole_files import note, write_picture
from drawing.figures import Series
from lightning_modules.task import Batch, Task

# Beside what reports write: what went wrong with them.
ERRORS = "errors.log"


def no_series(name: str) -> Series:
    """Of a command that keeps no table of metrics."""
    return [], []


@dataclass(frozen=True)
class Place:
    """Where reports put what they make, and what they may read.

    Args:
        pictures: folder of what they draw.
        files: folder of what they write.
        title: what the run is called.
        series: steps and values of what was logged under a name, such as `val/top1`.
    """

    pictures: Path
    files: Path
    title: str = ""
    series: Callable[[str], Series] = no_series


class Report(Callback):
    """Watches the evaluations of a task, and draws and writes what there is to see.

    One rhythm for all: what `validate` and `test` evaluate is drawn and written; in a `fit` a validation is, if the
    last time is `every_seconds` ago, then the last validation at the end, and the test that follows. A trial before
    training is no evaluation, and without a place nothing is made. What cannot be drawn or written ends nothing: it is
    noted in `errors.log`, said, and tried again the next time.

    A subclass says which task it `reads`, names its `pictures` and `files` with a caption each, and writes what is
    particular to it. `start` forgets the evaluation before, `keep` takes what is needed of a batch, `merge` puts the
    processes together, `metrics` are logged under the split's name, `draw` and `write` make figures and files on the
    first process. While they run, `task`, `data`, `trainer` and `split` say what is evaluated. A report `of_training`
    is made of what a `fit` has logged so far, at the same rhythm, whether or not there are evaluations.
    """

    # Whose outcomes are read.
    reads: ClassVar[type[LightningModule]] = Task
    # What is drawn and written, by file name, with what a person is told of it.
    pictures: ClassVar[Mapping[str, str]] = {}
    files: ClassVar[Mapping[str, str]] = {}
    # Whether every run of such a task has one; others are named in configs.
    in_every_run: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...]] = ("val", "test")
    of_training: ClassVar[bool] = False
    # Between two times in a training.
    every_seconds: float = 60.0

    trainer: Trainer
    task: Any
    split: str
    place: Place | None = None
    _last_made: float | None = None
    # Why the pictures, or the files, of the last time are not what they should be; tried again at the next one.
    undrawn = ""
    unwritten = ""
    # Whether this process has trained, so that a test is the one that ends a fit.
    has_trained = False
    _evaluating = False
    # Whether there is something to be made.
    _ready = False

    # What a subclass writes.

    def applies(self, task: LightningModule) -> bool:
        """Whether there is something to report of a task and its network."""
        return isinstance(task, self.reads)

    def start(self) -> None:
        """Forgets the evaluation before."""

    def look(self, batch: Batch) -> None:
        """Looks at a batch before the task does."""

    def keep(self, batch: Batch, outputs: Any) -> None:
        """Takes what is needed of a batch.

        Args:
            batch: on the device.
            outputs: what the task's `count` returned.
        """

    def merge(self) -> None:
        """Puts together what all processes have kept; runs on each."""

    def metrics(self) -> Mapping[str, float | Tensor]:
        """What is logged, by name without the split; the same on each process."""
        return {}

    def may_log(self, task: LightningModule) -> bool:
        """Whether it may have metrics, asked once the task's network has seen a batch."""
        return self.applies(task) and type(self).metrics is not Report.metrics

    def draw(self) -> Mapping[str, Figure]:
        """Figures by the name of their file, without its ending."""
        return {}

    def write(self, folder: Path) -> None:
        """Writes files.

        Args:
            folder: exists.
        """

    # The rest is the same for all.

    @property
    def data(self) -> Any:
        """The data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _begin(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        self._evaluating = split in self.splits and not trainer.sanity_checking and self.applies(pl_module)
        if self._evaluating:
            self.trainer, self.task, self.split = trainer, pl_module, split
            self._ready = self.of_training and self._ready
            self.start()

    def _end(self) -> None:
        if self._evaluating:
            self.merge()
            if self.split != "predict":
                for name, value in self.metrics().items():
                    # The same on every process; Lightning asks for sync_dist all the same.
                    self.task.log(f"{self.split}/{name}", value, sync_dist=True)
            self._evaluating = False
            self._ready = self._ready or not self.of_training

    def make(self) -> None:
        """Draws and writes what was evaluated last, if anything was."""
        if not self._ready or self.place is None or not self.trainer.is_global_zero:
            return
        started = time.monotonic()
        self.undrawn = self._attempt("drawn", self._draw, self.undrawn)
        self.unwritten = self._attempt("written", self._write, self.unwritten)
        self._last_made = started

    def _draw(self, place: Place) -> None:
        for name, figure in self.draw().items():
            picture = write_picture(place.pictures / f"{name}.png", figure)
            for logger in self.trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(name if self.of_training else f"{self.split}/{name}", [str(picture)])

    def _write(self, place: Place) -> None:
        place.files.mkdir(parents=True, exist_ok=True)
        self.write(place.files)

    def _attempt(self, done: str, action: Callable[[Place], None], before: str) -> str:
        """Does something that a run can do without; returns what went wrong, which is said where it did not before."""
        assert self.place is not None
        try:
            action(self.place)
        except Exception as error:
            log = self.place.files / ERRORS
            reason = (str(error).strip().splitlines() or [""])[0]
            trouble = f"{type(self).__name__} could not be {done}: {type(error).__name__}: {reason}"
            if note(log, f"{trouble}\n{traceback.format_exc()}\n"):
                trouble += f"; see {log}"
            if not before:
                print(f"exp: {trouble}", file=sys.stderr, flush=True)
            return trouble
        return ""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_made, self.has_trained = time.monotonic(), True
        if self.of_training and self.applies(pl_module):
            self.trainer, self.task, self._ready = trainer, pl_module, True

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "val")

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "test")

    @override
    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "predict")

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._evaluating:
            self.look(batch)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._evaluating:
            self.keep(batch, outputs)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        old = self._last_made is None or time.monotonic() - self._last_made > self.every_seconds
        if not trainer.sanity_checking and (old or trainer.state.fn == "validate"):
            self.make()

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.of_training:
            self.make()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.make()
