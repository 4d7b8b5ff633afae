"""What a command changes of the training that it goes on with: each value is applied, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exp.checkpoint_io import config_of
from exp.cli import Cli
from exp.run_directory import Run, RunError, essence
from exp.usage import UsageError

# Where the sampler stands in an epoch is counted in what these decide.
WITHIN_AN_EPOCH = ("seed_everything", "data", "data.batch_size", "trainer.accumulate_grad_batches")
LONGEST = 80


@dataclass(frozen=True)
class Change:
    """A value that a command changes.

    Args:
        key: as it is given on the command line.
        old: what the checkpoint was made with.
        new: what the command says.
    """

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.old)} -> {_short(self.new)}"


@dataclass(frozen=True)
class Resumption:
    """Where a training goes on.

    Args:
        step: optimiser steps that the checkpoint has taken.
        changes: what is different from there on.
        in_mid_epoch: whether the samples of an epoch are not through.
    """

    step: int = 0
    changes: tuple[Change, ...] = ()
    in_mid_epoch: bool = False


def resumption(cli: Cli, run: Run, content: dict[str, Any]) -> Resumption:
    """What goes on with a checkpoint, and with which values.

    Args:
        cli: the command.
        run: its run, with a checkpoint.
        content: of the checkpoint.

    Raises:
        UsageError: a value that differs cannot be applied, which is named; or there is no training in the file.
    """
    checkpoint = run.checkpoint
    assert checkpoint is not None
    if not _holds_a_training(content):
        raise UsageError(f"--resume {checkpoint}: it holds no state of a training; {_anew(checkpoint)}")
    made_with = config_of(content)
    if made_with is None:
        run.notes.append(f"{checkpoint} does not say with which config it was made: what differs is not known")
    found = {each.key: each for each in changes(essence(made_with), essence(cli.plain))} if made_with else {}
    for key, change in found.items():
        if key.endswith("optimizer"):
            raise UsageError(
                f"{checkpoint}: the checkpoint's optimiser ({key}) is {_short(change.old)}, the command's "
                f"{_short(change.new)}: {_anew(checkpoint)}"
            )
    if cli.config.weights and "weights" in found:
        raise UsageError(f"--weights: {checkpoint} has all weights; give --weights or --resume, not both")
    if _in_mid_epoch(content) and (kept := [found[key] for key in WITHIN_AN_EPOCH if key in found]):
        raise UsageError(
            f"{checkpoint} is in the middle of an epoch, whose samples {kept[0]} would take in another order: finish "
            f"the epoch with the old value, or {_anew(checkpoint)}"
        )
    ends_here = checkpoint.parent == run.checkpoints
    if (left := _left(cli, content)) < 0 or (left == 0 and not ends_here):
        raise UsageError(
            f"{checkpoint} has been trained for {_epochs(content)} epochs and {content['global_step']} steps, and the "
            "command asks for no more: give more by --trainer.max_epochs"
        )
    return Resumption(int(content["global_step"]), tuple(found.values()), _in_mid_epoch(content))


def goes_on(cli: Cli, run: Run, content: dict[str, Any]) -> bool:
    """Whether a command trains a finished run further: it has another config, and epochs or steps are left.

    Raises:
        RunError: it has another config, but nothing is left to train.
    """
    if run.facts.get("fingerprint") == run.fingerprint or not _holds_a_training(content):
        return False
    if _left(cli, content) <= 0:
        made_with = config_of(content)
        told = "; ".join(map(str, changes(essence(made_with), essence(cli.plain)))) if made_with else ""
        raise RunError(
            f"{run.path} is finished, after {_epochs(content)} epochs, and {told or 'another config'} would change "
            "nothing: give more by --trainer.max_epochs"
        )
    return True


def changes(old: Any, new: Any, key: str = "", options: bool = True) -> Iterator[Change]:
    """The values in which two resolved configs differ.

    An option that only one of them knows is none: it has come, or gone, since the other was resolved.

    Args:
        old, new: configs as plain values, or what is at `key` in them.
        key: as it is given on the command line.
        options: whether the keys of a dict are options of exp or of a class, rather than a user's own.
    """
    if old == new:
        return
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if isinstance(old, list) and any(isinstance(each, dict) for each in old) and _class_of(old) == _class_of(new):
            for i, (a, b) in enumerate(zip(old, new, strict=True)):
                yield from changes(a, b, f"{key}.{i}", options=False)
        elif _class_of(old) != _class_of(new) or isinstance(old, list):
            yield Change(key, old, new)
        return
    if "class_path" in old or "class_path" in new:
        if _class_of(old) != _class_of(new):
            yield Change(key, old, new)
            return
        old, new, options = old.get("init_args") or {}, new.get("init_args") or {}, True
    # Of a user's own dict, such as `lr_multipliers`, a key that is new is a change.
    names = [name for name in new if name in old] if options else [*old, *(name for name in new if name not in old)]
    for name in names:
        is_part = not key and name in ("trainer", "checkpoint")
        yield from changes(old.get(name), new.get(name), f"{key}.{name}" if key else str(name), options=is_part)


def _class_of(value: Any) -> Any:
    """The class that a value names, or the classes that a list of them names; else the value's text."""
    if isinstance(value, dict):
        return value.get("class_path")
    if isinstance(value, list):
        return [_class_of(each) if isinstance(each, dict) else None for each in value]
    return value


def _short(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    if isinstance(value, list):
        value = f"[{', '.join(map(_short, value))}]"
    text = " ".join(str(value).split())
    if text.replace("_", "").replace(".", "").isalpha() and text.count("."):
        text = text.rpartition(".")[2]
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _anew(checkpoint: Path) -> str:
    return f"start a new training from its weights by --weights={checkpoint}"


def _holds_a_training(content: dict[str, Any]) -> bool:
    try:
        return {"processed", "ready"} <= _progress(content).keys() and {
            "global_step",
            "optimizer_states",
        } <= content.keys()
    except (KeyError, TypeError, AttributeError):
        return False


def _progress(content: dict[str, Any]) -> dict[str, int]:
    return content["loops"]["fit_loop"]["epoch_progress"]["current"]


def _epochs(content: dict[str, Any]) -> int:
    """Epochs that are through."""
    return int(_progress(content)["processed"])


def _in_mid_epoch(content: dict[str, Any]) -> bool:
    return int(_progress(content)["ready"]) > _epochs(content)


def _left(cli: Cli, content: dict[str, Any]) -> float:
    """What is left to train: epochs, or steps, whichever the command limits more; below 0 if more than that is done."""
    trainer = cli.trainer
    most_epochs, most_steps = trainer.max_epochs, trainer.max_steps
    left = [float("inf")]
    if most_epochs is not None and most_epochs >= 0:
        left.append(most_epochs - _epochs(content))
    if most_steps >= 0:
        left.append(most_steps - int(content["global_step"]))
    return min(left)
