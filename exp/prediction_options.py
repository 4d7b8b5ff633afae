"""The options of `predict`: the arguments of what writes each task's predictions."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule

import lightning_modules
from callbacks.reports import Predictions, predictions_of
from exp.trust import read_yaml
from models.mistakes import Mistake


class PredictionOptions:
    """Options of all tasks that exp has, and of the one that a command names.

    Args:
        argv: what follows `predict`, with the config that a checkpoint brings.
    """

    def __init__(self, argv: list[str]) -> None:
        tasks = [each for name in lightning_modules.__all__ if _is_task(each := getattr(lightning_modules, name))]
        tasks += [each for path in _named_tasks(argv) if _is_task(each := _imported(path))]
        self.kinds = list(dict.fromkeys(kind for task in tasks for kind in predictions_of(task)))

    def names(self, kind: type[Predictions]) -> dict[str, Any]:
        """The options of one kind, with their defaults."""
        return {name: each.default for name, each in inspect.signature(kind).parameters.items()}

    def spelled(self, argv: list[str]) -> list[str]:
        """Arguments with these options as Python spells them: a hyphen is as good as an underscore."""
        known = {name.replace("_", "-"): name for kind in self.kinds for name in self.names(kind)}
        spelled = []
        for argument in argv:
            name, equals, value = argument.removeprefix("--").partition("=")
            is_option = argument.startswith("--") and name in known
            spelled.append(f"--{known[name]}{equals}{value}" if is_option else argument)
        return spelled

    def add_to(self, parser: ArgumentParser) -> None:
        """Adds the options; tasks may share one."""
        added: set[str] = set()
        for kind in self.kinds:
            parser.add_class_arguments(kind, skip=added & set(self.names(kind)), instantiate=False)
            added |= set(self.names(kind))

    def build(self, config: Namespace, task: LightningModule) -> Predictions:
        """What writes a task's predictions, as the options say.

        Args:
            config: the command's config.
            task: that predicts.

        Raises:
            Mistake: nothing writes the predictions of such a task, or an option is another task's.
        """
        kinds = predictions_of(type(task))
        if not kinds:
            raise Mistake(f"nothing writes what {type(task).__name__} predicts: it has no Predictions report")
        own = self.names(kinds[0])
        for kind in self.kinds:
            for name, default in self.names(kind).items():
                if name not in own and getattr(config, name) != default:
                    raise Mistake(_refusal(name, kind, task))
        return kinds[0](**{name: getattr(config, name) for name in own})


def _refusal(name: str, kind: type[Predictions], task: LightningModule) -> str:
    option = f"--{name.replace('_', '-')}"
    network = type(getattr(task, "network", task)).__name__
    return f"{option} is for {kind.reads.__name__}, not for {type(task).__name__} with {network}; leave it out"


def _is_task(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, LightningModule)


def _named_tasks(argv: list[str]) -> list[str]:
    """Class paths of the tasks that configs and options name."""
    paths: list[str] = []
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        value = value if equals else argv[i + 1] if i + 1 < len(argv) else ""
        if name in ("--model", "--model.class_path"):
            paths.append(value)
        elif name in ("-c", "--config") and Path(value).is_file():
            try:
                config = read_yaml(Path(value).read_text())
            except (yaml.YAMLError, UnicodeDecodeError):
                # The parser says what is wrong with it.
                continue
            model = config.get("model") if isinstance(config, dict) else None
            paths.append(str(model.get("class_path", "")) if isinstance(model, dict) else str(model or ""))
    return [path for path in paths if all(part.isidentifier() for part in path.split(".")) and "." in path]


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
