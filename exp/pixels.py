"""How images look to a command's network: what its weights state reaches its data, and what contradicts is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torchvision.models import get_model_weights

from datamodules import DataError, DataModule, Pixels
from exp.weight_files import WeightFileError
from models.pixels import (
    AS_THEY_ARE,
    Stated,
    normalises_itself,
    of_published,
    of_timm,
    of_torchvision,
    pixels_of,
)

if TYPE_CHECKING:
    from torch import nn

    from exp.cli import Cli

# Where a checkpoint and a `.safetensors` file's metadata say it.
KEY = "pixels"


@dataclass(frozen=True)
class Statement:
    """What weights say of the images that they expect.

    Args:
        pixels: how they look, if that is known.
        silent: whether the file does not say it, so that `pixels` are those of the weights that timm publishes.
    """

    pixels: Pixels | None = None
    silent: bool = False


def statement_of(path: Path, content: Any, module: nn.Module) -> Statement:
    """What a file says of the images that its weights expect, or what is known of the network that they are for.

    Args:
        path: the file.
        content: what it holds.
        module: the network, or the part of it.

    Raises:
        WeightFileError: the file states what cannot be.
    """
    pixels = stated_in(path, content)
    if pixels is not None or of_a_run(content):
        return Statement(pixels)
    return Statement(stated_by(of_published(module)), silent=True)


def of_a_run(content: Any) -> bool:
    """Whether a file is a run's checkpoint: one without a statement is older than these, and had the data's own."""
    weights = content.get("state_dict") if isinstance(content, Mapping) else None
    return isinstance(weights, Mapping) and any(str(name).startswith("network.") for name in weights)


def stated_in(path: Path, content: Any) -> Pixels | None:
    """What a file of weights states of its images; None if it says nothing.

    Args:
        path: the file.
        content: what it holds.

    Raises:
        WeightFileError: it states what cannot be.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except SafetensorError:
        plain = content.get(KEY) if isinstance(content, Mapping) else None
        # Bare weights may have a tensor of this name.
        return None if isinstance(plain, Tensor) else stated_by(plain)
    if text is None:
        return None
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError):
        plain = text
    return stated_by(plain)


def stated_by(plain: Any) -> Pixels | None:
    """What a file, its layout or a network states of its images, of plain values; None of nothing.

    Raises:
        WeightFileError: it cannot be.
    """
    try:
        return None if plain is None else Pixels.stated(plain)
    except DataError as error:
        raise WeightFileError(f"what it states of its pixels cannot be: {error}") from error


def hand_over(cli: Cli, given: Mapping[str, tuple[Path, Statement]], tell: bool = True) -> None:
    """Makes the data's images look as the weights of a command expect them.

    Args:
        cli: the command, with its weights.
        given: file and what it says, by the part of the module whose weights it holds.
        tell: whether to print what changes.

    Raises:
        UsageError: weights contradict each other, or the config.
    """
    stated = dict(_of_networks(cli, given))
    for part in [part for part in given if (owner := _converting(cli.model, part)) is not None]:
        pixels = given[part][1].pixels
        owner.adopt_pixels(None if pixels is None else pixels.plain())
    given = {part: each for part, each in given.items() if _converting(cli.model, part) is None}
    told = getattr(cli.datamodule, "told_pixels", None)
    for part, (path, statement) in given.items():
        pixels = statement.pixels
        if statement.silent and told is None and tell:
            taken = "taken as the data's own" if pixels is None else "taken as of timm's weights of this network"
            print(f"{path} does not say how its pixels look: {taken}; data.init_args.pixels says otherwise")
        if pixels is not None and not (statement.silent and told is not None):
            stated[str(path)] = pixels if "." not in part else pixels.of_values_alone()
    _settle(cli, stated, tell)


def hand_over_checkpoint(cli: Cli, path: Path, content: Mapping[str, Any], tell: bool = True) -> None:
    """Makes the data's images look as in the run that a checkpoint is of; one that is older than this says nothing.

    Args:
        cli: the command.
        path: the checkpoint.
        content: what it holds.
        tell: whether to print what changes.

    Raises:
        UsageError: the config says otherwise, or the checkpoint what cannot be.
    """
    from exp.usage import UsageError

    try:
        pixels = stated_in(path, content)
    except WeightFileError as error:
        raise UsageError(f"{path}: {error}") from error
    _settle(cli, {} if pixels is None else {str(path): pixels}, tell)


def _of_networks(cli: Cli, given: Iterable[str]) -> Iterable[tuple[str, Pixels]]:
    """What the networks state whose weights came with them, and were not replaced by a file's."""
    parts = list(given)
    if normalises_itself(cli.model):
        yield "the network, which normalises its images itself,", Pixels.stated(AS_THEY_ARE)
    config = getattr(cli, "plain", {}).get("model") or {}
    for name, plain in {**pixels_of(cli.model), **dict(_of_builders(cli.model, config))}.items():
        if not any(f"{name}.".startswith(f"{part}.") for part in parts) and _converting(cli.model, name) is None:
            pixels = Pixels.stated(plain)
            # A backbone's size is not that of what it is a part of.
            yield f"the pretrained {name}", pixels if "." not in name else pixels.of_values_alone()


def _converting(model: nn.Module, part: str) -> Any:
    """The module around a part that makes of the data's images what the part's weights expect; None if none does."""
    names = part.split(".")
    for end in range(1, len(names)):
        owner = model.get_submodule(".".join(names[:end]))
        if hasattr(owner, "adopt_pixels"):
            return owner
    return None


def _of_builders(module: nn.Module, config: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Stated]]:
    """What networks state that a config takes straight from timm or torchvision, with weights.

    Args:
        module: what the config built.
        config: its class path and arguments.
        within: the module's name, with a dot.
    """
    for name, value in (config.get("init_args") or {}).items():
        network = getattr(module, name, None)
        if not isinstance(value, Mapping) or "class_path" not in value or network is None:
            continue
        builder, arguments = value["class_path"], value.get("init_args") or {}
        stated = None
        if builder.startswith("timm.") and arguments.get("pretrained"):
            stated = of_timm(network.pretrained_cfg)
        elif builder.startswith("torchvision.models.") and arguments.get("weights"):
            weights = get_model_weights(builder.rpartition(".")[2])[str(arguments["weights"]).rpartition(".")[2]]
            stated = of_torchvision(weights.transforms())
        if stated is not None:
            yield within + name, stated
        yield from _of_builders(network, value, f"{within}{name}.")


def _settle(cli: Cli, stated: Mapping[str, Pixels], tell: bool) -> None:
    from exp.usage import UsageError

    data = cli.datamodule
    if not stated or not isinstance(data, DataModule):
        return
    (first, pixels), *others = stated.items()
    for other, theirs in others:
        if not pixels.agree(theirs):
            raise UsageError(
                f"{first} expects pixels {pixels.of_values_alone()}, {other} {theirs.of_values_alone()}: the same "
                "images cannot be both; use weights that agree"
            )
    before = data.pixels
    try:
        data.adopt(pixels)
    except DataError as error:
        raise UsageError(
            f"{first} expects pixels {pixels.of_values_alone()}, but {error}; remove data.init_args.pixels (or mean "
            "and std), and the images are as the weights expect them"
        ) from error
    if tell and data.pixels != before:
        print(f"pixels {data.pixels}, as {first} expects them")
