"""`validate --probe` and `test --probe`: how well the features of any checkpoint tell the data's classes apart."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from callbacks.reports import Place, Report
from callbacks.whole_files import whole, write_whole
from exp.claims.code_version import code_version
from exp.cli import Cli
from exp.trainers import place_reports
from exp.usage import UsageError
from lightning_modules.probing import Features, judged, probing
from models.mistakes import Mistake

SPLITS = {"validate": "val", "test": "test"}
TITLES = {"knn": "nearest neighbours", "linear": "linear probe"}
# What of a config features follow from, beside the weights.
_DECIDING = ("model", "data", "seed_everything")


def probe(cli: Cli, checkpoint: Path, folder: Path) -> None:
    """Judges the features of the command's network by `--probe`; prints a table and writes it.

    Features are computed once: those that an earlier command has left are taken, if everything is as it was then.

    Args:
        cli: the command, with its weights if they are not in a checkpoint.
        checkpoint: where the weights are from.
        folder: where results and features go.

    Raises:
        Mistake: data without classes.
        UsageError: an unknown probe, a network without features, data without such a split.
    """
    split, trainer, data = SPLITS[cli.command], cli.trainer, cli.datamodule
    try:
        judge = probing(cli.model, cli.config.probe.replace(",", " ").split())
    except Mistake as error:
        raise UsageError(f"--probe {cli.config.probe}: {error}") from error
    # Reports are of the task's own evaluations.
    trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, Report)]  # type: ignore[attr-defined]
    place_reports(trainer, Place(folder, folder))
    if not data.has(split) or not data.has("train"):
        raise UsageError(f"{type(data).__name__} has no {split} images to probe, or none to train on")
    stored = {each: Stored(folder / f"{each}.safetensors", digest(cli, checkpoint, each)) for each in ("train", split)}
    # Processes of a job might not see the same files.
    found = {} if trainer.world_size > 1 else {each: file.read(judge.sides) for each, file in stored.items()}
    known, seen = found.get("train"), found.get(split)
    if known is None or seen is None:
        run = getattr(trainer, cli.command)
        run(judge, data, ckpt_path=cli.config.ckpt_path, weights_only=True, verbose=False)
        known, seen = judge.known, judge.seen
        metrics = judge.conclude(split).metrics
        if trainer.is_global_zero:
            stored["train"].write(known)
            stored[split].write(seen)
    else:
        metrics = judged(known, seen, judge.sides, judge.probes, judge.neighbours)
    if trainer.is_global_zero:
        facts = {"images": len(seen["index"]), "known_images": len(known["index"])}
        facts["channels"] = known[judge.sides[0]].shape[1]
        plain = {f"{split}/{name}": float(value) for name, value in metrics.items()}
        write_whole(folder / f"{split}.json", json.dumps(plain | facts, indent=2) + "\n")
        _print(plain, facts, split, judge.sides, judge.probes, f"{cli.command} of {checkpoint}")
        Console(emoji=False).print(f"in {folder}: {split}.json", highlight=False, soft_wrap=True, markup=False)


def _print(
    metrics: dict[str, float], facts: dict[str, int], split: str, sides: list[str], probes: list[Any], title: str
) -> None:
    console = Console(emoji=False)
    console.print(title, highlight=False, soft_wrap=True, markup=False)
    table = Table("images right by", *map(escape, sides), box=None)
    for each in probes:
        names = [f"{split}/{each}_top1_{side}" if len(sides) > 1 else f"{split}/{each}_top1" for side in sides]
        table.add_row(TITLES[each], *(f"{metrics[name]:.2%}" for name in names))
    console.print(table, highlight=False)
    console.print(
        f"{facts['images']:,} images, by the classes of {facts['known_images']:,} training images; features of "
        f"{facts['channels']} channels, rank {metrics[f'{split}/rank']:.1f}",
        highlight=False,
        soft_wrap=True,
    )


class Stored:
    """A file of features, which are of no use once anything that they follow from has changed.

    Args:
        path: the file.
        digest: of all that they follow from.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest

    def read(self, sides: list[str]) -> Features | None:
        """The features, if they are as they would come out now.

        Args:
            sides: whose are asked for.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                if (file.metadata() or {}).get("digest") != self.digest or not {*sides, "label"} <= set(file.keys()):
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def write(self, features: Features) -> None:
        """Keeps features for the next command."""
        with whole(self.path) as partial:
            save_file({name: value.cpu() for name, value in features.items()}, partial, {"digest": self.digest})


def digest(cli: Cli, checkpoint: Path, split: str) -> str:
    """Of all that the features of a split follow from: weights, config, code, images and their classes.

    Args:
        cli: the command.
        checkpoint: where the weights are from.
        split: `train`, `val` or `test`.
    """
    config, trainer = {name: cli.plain.get(name) for name in _DECIDING}, cli.trainer
    batches = trainer.limit_val_batches, trainer.limit_test_batches
    said = [config, code_version(cli.plain), str(cli.datamodule.pixels), str(trainer.precision), batches]
    made = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for text in (_identity(str(checkpoint)), *_images(cli.datamodule, split)):
        made.update(text)
    return made.hexdigest()


def _images(data: Any, split: str) -> Iterator[bytes]:
    source = data.source(split)
    labels = getattr(source, "labels", None)
    yield b"" if labels is None else labels.tobytes()
    for index in range(len(source)):
        yield _identity(source.name(index))


def _identity(name: str) -> bytes:
    """A name, and of a file its size and the time of its last change."""
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return os.fsencode(name)
    return os.fsencode(name) + f":{status.st_size}:{status.st_mtime_ns}".encode()
