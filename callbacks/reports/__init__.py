"""What watches a run and shows what there is to see: pictures, tables, files.

Every module of this package is looked through, so a new report is a new file: it says itself which task it reads.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from functools import cache
from types import ModuleType

from callbacks.reports.predictions import Predictions, Source
from callbacks.reports.report import Place, Report


@cache
def _modules() -> tuple[ModuleType, ...]:
    return tuple(importlib.import_module(each.name) for each in pkgutil.iter_modules(__path__, f"{__name__}."))


def kinds(task: type) -> list[type[Report]]:
    """The reports that read a task: of this package, in the order of its modules, and of the task's own module.

    Args:
        task: its class.
    """
    found: dict[type[Report], None] = {}
    for module in (*_modules(), sys.modules[task.__module__]):
        for each in vars(module).values():
            if inspect.isclass(each) and issubclass(each, Report) and each.__module__ == module.__name__:
                found[each] = None
    return [each for each in found if not inspect.isabstract(each) and issubclass(task, each.reads)]


def reports_of(task: type) -> list[type[Report]]:
    """The reports that every run of a task has.

    Args:
        task: its class.
    """
    return [each for each in kinds(task) if each.in_every_run and each is not Report]


def predictions_of(task: type) -> list[type[Predictions]]:
    """What writes a task's predictions; the one that reads the nearest of its classes first.

    Args:
        task: its class.
    """
    found = [each for each in kinds(task) if issubclass(each, Predictions)]
    return sorted(found, key=lambda each: task.__mro__.index(each.reads))


__all__ = ["Place", "Predictions", "Report", "Source", "predictions_of", "reports_of"]
