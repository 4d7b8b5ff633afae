"""The config files, and what their commands build."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import torch

from exp.cli import Cli

ROOT = Path(__file__).parents[2]
# Claims are configs of `exp compare`, which are run, not fitted; their arms are checked with that command.
CONFIGS = sorted(p.relative_to(ROOT) for p in ROOT.glob("configs/**/*.yaml") if "claims" not in p.parts)
HARDWARE = [path for path in CONFIGS if path.parent.name == "hardware"]
TASKS = [path for path in CONFIGS if path not in HARDWARE]


def command(path: Path) -> list[str]:
    """The arguments of the command that the first lines of a config give for it."""
    found = re.findall(r"^# +python -m exp fit (.*)$", (ROOT / path).read_text(), re.MULTILINE)
    commands = [shlex.split(line) for line in found]
    mine = [c for c in commands if [argument for argument in c if argument.endswith(".yaml")][-1] == str(path)]
    assert mine, f"{path} does not say by which command it is run"
    return mine[0]


def without_weights(argv: list[str]) -> list[str]:
    """The command without `--weights FILE` and without what timm would download: there are no such files here."""
    configs = [ROOT / argument for argument in argv if argument.endswith(".yaml")]
    if any("pretrained: true" in config.read_text() for config in configs):
        argv = [*argv, "--model.init_args.network.init_args.pretrained=false"]
    if "--weights" not in argv:
        return argv
    at = argv.index("--weights")
    return argv[:at] + argv[at + 2 :]


@cache
def built(path: Path) -> Cli:
    """What a config's command builds, with no memory for its weights."""
    with torch.device("meta"):
        return Cli(without_weights(command(path)), "fit")


def is_recipe(path: Path) -> bool:
    """Whether a config trains at full size, on a data set that nobody has here."""
    if path.parent.name == "semi_supervised":
        return path.stem.endswith("_cifar10")
    return "imagenet" in path.stem or path.stem.endswith(
        ("_coco", "_cityscapes", "_ade20k", "_mpii", "_vqa2", "_clevr")
    )
