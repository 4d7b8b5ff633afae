"""A task without a Trainer's loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from models.compute import inference

if TYPE_CHECKING:
    from lightning_modules.task import Task


@contextmanager
def alone(task: Task, data: Any) -> Iterator[None]:
    """Evaluation mode without gradients, on some data; the task's mode is restored.

    Args:
        task: with its weights.
        data: the data module; by default the trainer's.
    """
    task._data = data
    try:
        with inference(task):
            yield
    finally:
        task._data = None


def predicted(task: Task, batches: Iterable[Any], data: Any) -> list[Any]:
    """What `predict` would be told of some batches, one after the other.

    Args:
        task: with its weights, where it is to run.
        batches: as the data module's loader yields them.
        data: the data module.
    """
    with alone(task, data):
        return [task.predict_step(task.on_device(batch), number) for number, batch in enumerate(batches)]
