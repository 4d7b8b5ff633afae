"""What a config may say that came inside a file: a stranger's checkpoint builds what exp knows, and nothing else."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._common import parsing_settings

from exp.arguments import typed_names
from exp.plugins import is_importable, make_importable, top_package

# Whose classes a config from a file may name, and those of their parts that build, and neither load nor write.
OURS = ("callbacks", "datamodules", "lightning_modules", "models")
LIBRARIES = (
    "albumentations",
    "lightning.pytorch.callbacks",
    "timm.data.auto_augment",
    "timm.data.mixup",
    "timm.data.random_erasing",
    "timm.data.transforms",
    "timm.layers",
    "timm.loss",
    "timm.models",
    "timm.optim",
    "timm.scheduler",
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
)
# What may be imported to find out what a name of them stands for.
IMPORTED = (*OURS, "albumentations", "lightning", "timm", "torch.nn", "torch.optim", "torchmetrics", "torchvision")
# Callbacks that write to a place of their own; none of them changes an evaluation.
ACTING = (
    "BadSamples",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "Checkpoint",
    "Checkpoints",
    "LearningRateFinder",
    "ModelCheckpoint",
    "OnExceptionCheckpoint",
    "SpikeDetection",
)
# Of a config, what is computed. Where it runs and where it writes is the command's own.
KEPT = ("seed_everything", "trainer", "model", "data", "checkpoint", "experiment")
PLACE_TRAINER = (
    "accelerator",
    "default_root_dir",
    "devices",
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "logger",
    "model_registry",
    "num_nodes",
    "plugins",
    "profiler",
    "strategy",
)
# Where timm would look for weights that the checkpoint has.
PRETRAINED = ("pretrained_cfg", "pretrained_cfg_overlay")
SOURCES = ("cache_dir", "checkpoint_path")
SOURCES_OF_CFG = ("custom_load", "file", "hf_hub_filename", "hf_hub_id", "source", "state_dict", "url")

LONGEST = 1_000_000
MOST_VALUES = 100_000
DEEPEST = 60
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)
_HUB = re.compile(r"(hf[-_]hub|local-dir|hub):", re.IGNORECASE)
_CLASS_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Distrust(ValueError):
    """A config from a file says what no stranger's may; the message names the file and the remedy."""


def read_yaml(text: str) -> Any:
    """What a YAML text says, as plain values.

    Raises:
        yaml.YAMLError: It is no YAML, has tags, or is larger or deeper than any config.
    """
    try:
        content = yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep") from None
    except (ValueError, OverflowError) as error:
        raise yaml.YAMLError(f"a value that there is not ({error})") from error
    check_size(content)
    return content


def check_size(content: Any) -> None:
    """Refuses what would take for ever to go through: aliases of aliases, or lists in lists in lists.

    Raises:
        yaml.YAMLError: more values, or more levels, than any config has.
    """
    left = [(content, 0)]
    seen = 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")
        if seen > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values")
        if isinstance(value, dict):
            left += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list):
            left += [(each, depth + 1) for each in value]


@dataclass
class Rule:
    """What a config that came inside a file may do.

    Args:
        file: the file, for messages.
        trusted: packages that the user trusts beside those that exp knows.
        typed: names of classes that the user has typed, without their packages.
        command: all that the user has typed.
    """

    file: str
    trusted: list[str]
    typed: set[str] = field(default_factory=set)
    command: str = ""

    @classmethod
    def of(cls, file: str, trusted: list[str], argv: list[str]) -> Rule:
        """The rule for a file: what the user has typed behind it is the user's word, and free.

        Args:
            file: the file.
            trusted: what `--trust` names.
            argv: the other arguments of the command.
        """
        names = typed_names(argv)
        packages = {top_package(name) for name in names if "." in name}
        typed = {name.rpartition(".")[2] for name in names}
        return cls(file, sorted({*trusted, *packages}), typed, " ".join(argv))

    def read(self, text: Any) -> dict[str, Any]:
        """The part of a config that says what is computed, once nothing in it is forbidden.

        Args:
            text: the config as YAML.

        Raises:
            Distrust: it is no config, or names what it may not.
        """
        if not isinstance(text, str):
            raise Distrust(f"{self.file}: its config is no text but {type(text).__name__}; give one with --config")
        if len(text) > LONGEST:
            raise Distrust(f"{self.file}: its config is longer than {LONGEST} characters; give one with --config")
        try:
            content = read_yaml(text)
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            raise Distrust(f"{self.file}: its config cannot be read: {problem}; give one with --config") from error
        if not isinstance(content, dict):
            raise Distrust(f"{self.file}: its config is no mapping; give one with --config")
        self._check_names(content)
        config = {key: content[key] for key in KEPT if content.get(key) is not None}
        self._check_name(config.get("experiment"))
        for key in ("model", "data"):
            if isinstance(config.get(key), str):
                config[key] = {"class_path": config[key]}
        for key in ("trainer", "model", "data", "checkpoint"):
            if not isinstance(config.setdefault(key, {}), dict):
                raise Distrust(f"{self.file}: '{key}' of its config is no mapping; give a config with --config")
            if not config[key]:
                del config[key]
        for name in [str(name) for name in config.get("trainer", {})]:
            if "." in name:
                raise Distrust(
                    f"{self.file}: its config says 'trainer: {name}', which is no key; give one with --config"
                )
        trainer = config.get("trainer", {})
        for key in ("callbacks", "logger", "plugins", "profiler", "strategy"):
            for each in given if isinstance(given := trainer.get(key), list) else [given]:
                if isinstance(each, str) and "." in each:
                    self._check_names({"class_path": each})
        trainer = {key: value for key, value in trainer.items() if key not in PLACE_TRAINER}
        if callbacks := trainer.get("callbacks"):
            callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
            trainer["callbacks"] = [each for each in callbacks if _class_name(each) not in ACTING]
        config |= {"trainer": trainer}
        return {key: self._checked(value) for key, value in config.items()}

    def _check_name(self, name: Any) -> None:
        if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name) and ".." not in name.split("/")):
            raise Distrust(
                f"{self.file}: its config calls the experiment {name!r}, which is no plain name; give a config with "
                "--config"
            )

    def _check_names(self, value: Any) -> None:
        """What can be said of classes by their names, before anything is imported.

        Raises:
            Distrust: a class is of no package that exp knows, or its name is none.
        """
        if isinstance(value, list):
            for each in value:
                self._check_names(each)
        elif isinstance(value, dict):
            for key, each in value.items():
                self._check_names(each)
                if not isinstance(key, str) or key.split(".")[-1] != "class_path":
                    continue
                if not isinstance(each, str) or not _CLASS_PATH.fullmatch(each):
                    raise Distrust(f"{self.file}: its config has the class_path {each!r}, which is no name of a class")
                if "." in each and not _below(each, (*IMPORTED, *self.trusted)):
                    raise self.refusal(each)

    def _checked(self, value: Any) -> Any:
        """A value without the places that weights could come from.

        Raises:
            Distrust: it names a class, a function or a hub that it may not.
        """
        if isinstance(value, list):
            return [self._checked(each) for each in value]
        if isinstance(value, str):
            self._check_hub(value)
            if "." in value and _CLASS_PATH.fullmatch(value) and _below(value, (*IMPORTED, *self.trusted)):
                found = _found(value)
                if inspect.isclass(found) or inspect.isroutine(found):
                    self._check_object(found, value)
        if not isinstance(value, dict):
            return value
        kept = {}
        for key, each in value.items():
            if isinstance(key, str) and key.startswith("__"):
                raise Distrust(f"{self.file}: its config has the key '{key}', which is no argument of anything")
            if key in PRETRAINED and isinstance(each, dict):
                each = {name: given for name, given in each.items() if name not in SOURCES_OF_CFG}
            if key not in SOURCES:
                kept[key] = self._checked(each)
        return kept

    def _check_hub(self, value: str) -> None:
        # What takes a network's name apart passes over white space in it.
        if _HUB.match(re.sub(r"[\x00-\x20]", "", value)) and value not in self.command:
            raise Distrust(
                f"{self.file}: its config asks a hub or a folder for {value!r}, which the checkpoint does not hold; "
                "give a config with --config"
            )

    def refusal(self, path: str) -> Distrust:
        """The message about a class or function that the config may not name."""
        return Distrust(
            f"{self.file}: its config names {path}, which is none of the classes that a checkpoint may name; if you "
            f"trust it, add --trust {top_package(path)}, or give a config with --config"
        )

    @contextmanager
    def guard(self) -> Iterator[None]:
        """While it lasts, the parser imports nothing for a config but what the rule knows, however it is spelled."""
        # There is no public way to take a setting back.
        before = dict(parsing_settings)
        # The parser never lets a config name the parser.
        allowed = [name for name in (*IMPORTED, *self.trusted) if top_package(name) != "jsonargparse"]
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
        try:
            yield
        finally:
            parsing_settings.update(before)

    def check(self, parsed: Any) -> None:
        """Looks at every class and function that the parser has found, before any of them is called.

        Args:
            parsed: what the parser has made of a config.

        Raises:
            Distrust: one of them may not be named.
        """
        if inspect.isclass(parsed) or inspect.isroutine(parsed):
            self._check_object(parsed, f"{parsed.__module__}.{parsed.__qualname__}")
        elif isinstance(parsed, (list, tuple, set)):
            for value in parsed:
                self.check(value)
        elif isinstance(parsed, (dict, Namespace)):
            values = parsed if isinstance(parsed, dict) else vars(parsed)
            path = values.get("class_path")
            if isinstance(path, str) and "." in path:
                self._check_object(_found(path), path)
            for key, value in values.items():
                inner = value if isinstance(value, dict) else {}
                strange = [key] if key in SOURCES and value is not None else []
                strange += [name for name in SOURCES_OF_CFG if key in PRETRAINED and name in inner]
                for name in strange:
                    if name not in self.command:
                        raise Distrust(f"{self.file}: its config says '{name}'; give a config with --config")
                self.check(value)
        elif isinstance(parsed, str):
            self._check_hub(parsed)

    def _check_object(self, thing: Any, path: str) -> None:
        home = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
        if _below(home, self.trusted) or (inspect.isclass(thing) and thing.__name__ in self.typed):
            return
        if inspect.isclass(thing):
            allowed = _below(home, (*OURS, *LIBRARIES)) and thing.__name__ not in ACTING
        else:
            # A network may be built by a function of ours; other people's functions also load files.
            allowed = _below(home, ("models", "torch.nn.functional", "torch._C._nn"))
        if not allowed:
            raise self.refusal(path)


def taken_from(argv: list[str]) -> tuple[list[str], list[str]]:
    """Takes each `--trust PACKAGE` out of a command.

    Returns:
        The packages, and the other arguments.

    Raises:
        Distrust: there is no such package.
    """
    packages: list[str] = []
    rest: list[str] = []
    left = iter(argv)
    for argument in left:
        name, equals, value = argument.partition("=")
        if name != "--trust":
            rest.append(argument)
            continue
        package = value if equals else next(left, "")
        if not _CLASS_PATH.fullmatch(package):
            raise Distrust(f"--trust {package}: it takes the name of a package, such as timm or mine")
        make_importable([top_package(package)], [Path.cwd()])
        if not is_importable(top_package(package)):
            raise Distrust(f"--trust {package}: no such package is installed, or lies here")
        packages.append(package)
    return packages, rest


def _below(path: str, packages: tuple[str, ...] | list[str]) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages)


def _class_name(callback: Any) -> str:
    path = callback.get("class_path") if isinstance(callback, dict) else callback
    return str(path).rpartition(".")[2]


def _found(path: str) -> Any:
    """What a name in a package stands for; None for nothing."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
