"""`python -m exp convert RUN OUT --architecture FILE`: an architecture of a searchable network as one of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from callbacks.whole_files import write_whole
from exp.cli import Cli
from exp.convert import ConvertError, write
from exp.errors import exit_code
from exp.trust import read_yaml
from exp.usage import UsageError
from exp.weights import start_from, to_evaluate
from models import official
from models.compute import parameter_count
from models.mistakes import Mistake
from models.supernet import chosen

NETWORK = ("model", "init_args", "network")


def extract(source: str, target: Path, architecture: Path, rest: list[str]) -> int:
    """Writes the weights that an architecture inherits, and the config that trains it further.

    Args:
        source: A run, or with a config in `rest` any weights of its network.
        target: Where the weights go; the config goes beside it, with the ending `.yaml`.
        architecture: File of it, as its space describes it, or a config whose network is one.
        rest: Options of `fit`.

    Returns:
        Exit code.

    Raises:
        UsageError: The run, the architecture or the file of one cannot be used, or the target not be written.
    """
    described, config = read_architecture(architecture), target.with_suffix(".yaml")
    if config.exists() and config.samefile(architecture):
        raise UsageError(f"{target}: its config would take the place of {architecture}: choose another name for OUT")
    with_config = any(each.partition("=")[0] == "--config" for each in rest)
    cli = Cli([f"--weights={source}" if with_config else f"--ckpt_path={source}", *rest], "convert")
    with exit_code(cli) as outcome:
        started = start_from(cli, to_evaluate(cli))
        try:
            network = chosen(cli.model.network, described)
        except Mistake as error:
            raise UsageError(f"--architecture {architecture}: {error}") from None
        state, pixels = network.state_dict(), started.pixels.pixels
        plain = config_of_architecture(cli.plain, described) | {"experiment": target.stem}
        try:
            write(state, target, None if pixels is None else pixels.plain())
        except ConvertError as error:
            raise UsageError(str(error)) from None
        write_whole(config, yaml.safe_dump(plain, sort_keys=False))
        print(f"{target}: {parameter_count(network):,} parameters{_options(state)}")
        print(f"{config}: trains them further, by python -m exp fit --config {config} --weights {target}")
    return outcome.code


def _options(state: official.State) -> str:
    """What is told of the network's options, where they follow from its weights."""
    try:
        options = official.layout_of(official.system_of(state, "official")).options
    except official.LayoutError:
        return ""
    return "" if options is None else f"; network options {json.dumps(dict(options(state)))}"


def config_of_architecture(config: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """A config whose network is one architecture of the network that it had.

    Args:
        config: Plain values.
        described: The architecture, in plain values.

    Raises:
        UsageError: The task takes no network by class path.
    """
    config = json.loads(json.dumps(config))
    place = config
    for key in NETWORK[:-1]:
        place = place.get(key) or {}
    network = place.get(NETWORK[-1])
    if not isinstance(network, dict) or "class_path" not in network:
        raise UsageError("the task takes no network by class path that could be chosen from")
    place["network"] = {
        "class_path": "models.supernet.chosen",
        "init_args": {"network": network, "architecture": described},
    }
    for key in ("ckpt_path", "version", "config", "weights"):
        config.pop(key, None)
    return config | {"resume": "auto"}


def read_architecture(path: Path) -> dict[str, Any]:
    """The architecture in a file: its own values, or those of a config whose network is one.

    Raises:
        UsageError: There is none in it.
    """
    try:
        found: Any = read_yaml(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--architecture {path}: it cannot be read ({' '.join(str(error).split())})") from None
    for key in (*NETWORK, "init_args", "architecture"):
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise UsageError(f"--architecture {path}: no choices by name in it, such as `depth: 12`")
    return found
