"""Configs and overrides in, built trainer, model and data out: the part that all commands share."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from jsonargparse import ArgumentError, Namespace, get_loader, set_loader, set_parsing_settings
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import nn

import datamodules  # noqa: F401  makes short class names known
import lightning_modules  # noqa: F401
import models.classifiers
import models.detectors
import models.pose
import models.segmenters
import models.vqa  # noqa: F401
from callbacks import Checkpoints
from callbacks.liveness import Liveness
from exp import from_data
from exp.arguments import config_files, files_first, option, weights_of_parts
from exp.checkpoint_contents import check_contents
from exp.checkpoint_io import CheckpointError, read_checkpoint
from exp.checkpoint_names import NoCheckpoint, find_checkpoint
from exp.exporting.formats import config_in
from exp.faults import fault, mistake_in, refuses_arguments
from exp.home import NoHomeError, at_home
from exp.hubs import HubError, covered, held_back
from exp.layers import KEY as BUILDS_ON
from exp.layers import origins, with_base
from exp.messages import denied, explain, refusal
from exp.plugins import make_importable, own_modules
from exp.prediction_options import PredictionOptions
from exp.progress import ProgressBar
from exp.signals import AGAIN, asked, name
from exp.trainers import make_trainer, standard_callbacks
from exp.trust import Distrust, Rule, check_size, taken_from
from exp.usage import ConfigError, UsageError
from lightning_modules.distillation import OF_TRAINING
from models.mistakes import NotTaken

# The part that `--weights FILE` is for.
WHOLE = "network"

_load_yaml = get_loader("yaml")


def _load(text: str) -> Any:
    # jsonargparse 4.53 hands null on to an argument of a class within a class as this word.
    if text == "None":
        return None
    try:
        content = _load_yaml(text)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    check_size(content)
    return content


set_loader("yaml", _load, exceptions=(yaml.YAMLError,))
# Lightning's enumerations are texts, too.
yaml.SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))
# A class in an argument that takes anything is a value like any other.
set_parsing_settings(instantiate_subclass_spec_in_any=False)


class Cli(LightningCLI):
    """LightningCLI without subcommands: one parser, one set of keys, for every command.

    A config that trains is thereby also one that validates, tests, predicts and profiles.

    Args:
        argv: what follows the command's name.
        command: the command's name, for messages and help.
    """

    def __init__(self, argv: list[str], command: str) -> None:
        self.command = command
        self.rule: Rule | None = None
        try:
            trusted, argv = taken_from(with_base(files_first(argv)))
            with self._own_config(argv, trusted) as argv:
                self._parse(argv)
        except (Distrust, ConfigError) as error:
            self.refuse(str(error))

    @contextmanager
    def _own_config(self, argv: list[str], trusted: list[str]) -> Iterator[list[str]]:
        """Puts the config that a checkpoint carries before the arguments, if one is given and a config is not."""
        make_importable(*own_modules(argv))
        checkpoint, file = option(argv, "--ckpt_path"), option(argv, "--runtime")
        if (checkpoint is None and file is None) or config_files(argv):
            yield argv
            return
        if checkpoint is None:
            checkpoint, text = str(file), config_in(Path(str(file)))
        else:
            # The run that the checkpoint is of may have lain elsewhere; its config does not say where it is now.
            checkpoint = str(_found(checkpoint, option(argv, "--runs") or "runs"))
            argv = [*argv, f"--ckpt_path={checkpoint}"]
            text = _config_of_checkpoint(Path(checkpoint))
        self.rule = Rule.of(checkpoint, trusted, argv)
        config = self.rule.read(text)
        if self.command in ("predict", "export"):
            config["trainer"]["devices"] = 1
        if self.command != "fit":
            # What a checkpoint is evaluated with is its network alone.
            for name in OF_TRAINING:
                (config["model"].get("init_args") or {}).pop(name, None)
        with tempfile.TemporaryDirectory() as folder, self.rule.guard():
            path = Path(folder) / "checkpoint.yaml"
            path.write_text(yaml.safe_dump(config, sort_keys=False))
            yield [f"--config={path}", *argv]

    def _parse(self, argv: list[str]) -> None:
        command = self.command
        if command == "predict":
            self.predictions = PredictionOptions(argv)
            argv = self.predictions.spelled(argv)
        try:
            super().__init__(
                model_class=LightningModule,
                datamodule_class=LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
                parser_kwargs={
                    "prog": f"python -m exp {command}",
                    "exit_on_error": False,
                    "allow_abbrev": False,
                    "dump_header": [],
                    "description": None,
                },
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                run=False,
                args=argv,
            )
        except ArgumentError as error:
            if self.rule is not None and (path := denied(str(error))):
                raise self.rule.refusal(path) from error
            self.refuse(explain(str(error), self.parser))

    def refuse(self, message: str) -> NoReturn:
        """Ends the command because of a mistake in its config."""
        raise UsageError(message) from None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what every run has: its place, its checkpoints, how it resumes and what it tells W&B."""
        parser.add_argument("--experiment", type=str | None, help="the run's name (default: the config file's)")
        parser.add_argument(
            f"--{BUILDS_ON}", type=str | None, help="of a config: the one that it changes, a path from its own folder"
        )
        parser.add_argument(
            f"--{from_data.KEY}",
            type=dict[str, str] | None,
            help="of a config: arguments of the model that the data say, such as {network.num_classes: num_classes}",
        )
        parser.add_argument("--version", type=str | None, help="the run's number or name (default: the next number)")
        parser.add_argument("--runs", type=str, default="runs", help="the folder of all runs")
        parser.add_argument(
            "--resume", type=str, default="auto", help="auto, never, a run's directory, NAME/last or a checkpoint"
        )
        parser.add_argument(
            "--wandb",
            type=Literal["auto", "online", "offline", "disabled"],
            default="auto",
            help="auto: online if logged in, else offline",
        )
        parser.add_argument(
            "--timeout",
            type=PositiveFloat,
            default=10.0,
            help="minutes that the processes of a job wait for one of them before the job ends",
        )
        parser.add_argument("--threads", type=PositiveInt | None, help="CPU threads of each process (default: torch's)")
        parser.add_argument("--test", type=bool, default=True, help="test the best checkpoint after fit")
        parser.add_argument(
            "--weights",
            type=str | dict[str, str] | None,
            help="start from these weights, of an exp checkpoint, an official file or one that `convert` wrote, or "
            "`package`: of an installed package; --weights.PART=FILE: weights of a part, such as teacher or "
            "network.backbone",
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="validate, test, predict: the checkpoint to use: a file, a run's directory, NAME/best or NAME/last",
        )
        parser.add_argument(
            "--trust",
            type=str | None,
            help="with --ckpt_path, and once for each: a PACKAGE whose classes the checkpoint's config may name, too",
        )
        if self.command == "predict":
            self.predictions.add_to(parser)
        if self.command in ("validate", "test"):
            parser.add_argument(
                "--runtime",
                type=str | None,
                help="evaluate a file that `export` wrote, FILE.onnx or FILE.pt2, in place of a checkpoint",
            )
            parser.add_argument(
                "--probe", type=str | None, help="judge the network's features instead: knn, linear or knn,linear"
            )
        parser.add_class_arguments(Checkpoints, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and keeps the resolved config as plain values."""
        rest, weights = weights_of_parts(list(args))
        self.config = parser.parse_args(rest)
        if self.rule is not None:
            self.rule.check(self.config)
        if weights:
            given = self.config.weights
            self.config.weights = ({WHOLE: given} if isinstance(given, str) else given or {}) | weights
        try:
            self.config = at_home(self.config)
        except NoHomeError as error:
            self.refuse(str(error))
        self.counted = self._read_off_data(args)
        if self.config.ckpt_path is not None:
            self.config.ckpt_path = str(_found(self.config.ckpt_path, self.config.runs))
        self.config.pop("trust", None)
        self.config.pop(BUILDS_ON, None)
        self.plain = yaml.safe_load(parser.dump(self.config, skip_none=False))
        self.config_files = [str(path) for path in self.config.pop("config", None) or []]
        self.plain.pop("config", None)

    def _read_off_data(self, args: Any) -> Any:
        """Puts into the model's config what the data say of it; the data module that was asked, or None."""
        if not self.config.get(from_data.KEY):
            return None
        with _refusals():
            data = self.parser.instantiate(Namespace(data=self.config.data)).data
        for key, value in from_data.read_off(data, self.config[from_data.KEY], map(str, args)).items():
            from_data.put(self.config.model, key, value)
        # It has been done, and what was read stands in the config.
        self.config[from_data.KEY] = None
        return data

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer; what a class refuses is a usage error."""
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        # A training, which may have all weights in files, asks for the others later (`ask_hubs`); whoever evaluates has
        # them in a file, and what a network costs does not depend on them.
        with _refusals(self.config_files), held_back() as self.held_back:
            super().instantiate_classes()
        if self.counted is not None:
            # Its files need not be looked for again.
            self.datamodule = self.counted
        seed = self.config.seed_everything
        if hasattr(self.datamodule, "seed"):
            self.datamodule.seed = seed

    def ask_hubs(self, parts: Iterable[nn.Module]) -> None:
        """Builds the model again, now with the weights that its networks ask a hub for, if any are wanted.

        Args:
            parts: parts of the model whose weights come from a file, so that no hub is asked for theirs.
        """
        given = list(parts)
        wanted = {number for number, network in self.held_back.items() if not covered(network, given, self.model)}
        if not wanted:
            return
        self._set_seed()
        with _refusals(), held_back(lambda number: number not in wanted):
            self.model = self._get(self.parser.instantiate_classes(self.config), "model")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks that make every run trustworthy."""
        config = self.config_init.trainer.as_dict()
        self.checkpoints: Checkpoints = self.config_init.checkpoint
        seed = self.config.seed_everything
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        always = standard_callbacks(None if seed is False else seed, self.checkpoints, self.model, given)
        if config["enable_progress_bar"] is not False and not any(isinstance(c, RichProgressBar) for c in given):
            always.insert(0, ProgressBar())
        self.user_loggers = config["logger"]
        always.insert(0, Liveness(self.config.timeout, lambda: asked() is not None, self._lost))
        config |= {"callbacks": [*given, *always], "logger": False}
        return make_trainer(self.trainer_class, config, self.config.timeout)

    def _lost(self, reason: str) -> None:
        """Ends this process, which waits for another that is lost."""
        stop, again = asked(), self.command == "fit"
        line = f"exp: stopped by {name(stop)}, but {reason}" if stop else f"exp: {reason} (--timeout): the job ends"
        line += "; the same command goes on from the last checkpoint" if again else ""
        # Of the others that miss the first process, one says so.
        if self.trainer.global_rank <= 1:
            print(line, file=sys.stderr, flush=True)
        os._exit((AGAIN if again else 128 + stop) if stop else 1)

    @property
    def experiment(self) -> str:
        """The run's experiment: as given, else the name of the last config file that is not about hardware."""
        if self.config.experiment:
            return self.config.experiment
        named = [path for path in map(Path, self.config_files) if path.parent.name != "hardware"]
        return named[-1].stem if named else type(self.model).__name__.lower()

    def config_text(self) -> str:
        """The resolved config as YAML."""
        return yaml.safe_dump(self.plain, sort_keys=False)


def _whence(mistake: BaseException, files: Iterable[str]) -> str:
    """Which configs say what a network does not take, and how to go on; empty of any other mistake."""
    if not isinstance(mistake, NotTaken):
        return ""
    said = origins(mistake.options, files)
    return f", which {said} has; the network's `options: {{}}` leaves them out" if said else ""


@contextmanager
def _refusals(files: Iterable[str] = ()) -> Iterator[None]:
    """Makes what a class refuses while it is built a usage error.

    Args:
        files: the configs that it is built from.
    """
    try:
        yield
    except HubError as error:
        raise UsageError(str(error)) from error
    except ModuleNotFoundError as error:
        # Of what Lightning leaves to other packages, such as its loggers.
        raise UsageError(" ".join(str(error).split())) from error
    except Exception as error:
        if mistake := mistake_in(error):
            raise UsageError(str(mistake) + _whence(mistake, files)) from error
        raise UsageError(refusal(str(error)) if refuses_arguments(error) else fault(error)) from error


class _Resolved(Cli):
    """Stops after parsing: no class is built."""

    def refuse(self, message: str) -> NoReturn:
        raise ConfigError(message) from None

    def instantiate_classes(self) -> None:
        """Nothing."""


def resolve(argv: list[str]) -> dict[str, Any]:
    """The config that a `fit` command would run with, as plain values.

    Args:
        argv: `--config` files and overrides.

    Raises:
        ConfigError: a file, key, class or value in it is wrong.
    """
    return _Resolved(argv, "fit").plain


def _config_of_checkpoint(path: Path) -> str:
    try:
        content = read_checkpoint(path, tensors=False)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    check_contents(path, content)
    if not (text := content.get("exp_config")):
        raise UsageError(f"{path} carries no config: give one with --config")
    return text


def _found(checkpoint: str, runs: str) -> Path:
    try:
        return find_checkpoint(checkpoint, Path(runs))
    except NoCheckpoint as error:
        raise UsageError(f"--ckpt_path {error}") from None
