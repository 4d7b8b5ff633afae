"""Several sizes of one supernet: each as a file and a plain network with its weights, and which meets a latency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from callbacks.whole_files import write_whole
from exp.arguments import option, without_option
from exp.checkpoint_names import NoCheckpoint, find_checkpoint
from exp.convert import ConvertError, write
from exp.evaluation import output_folder
from exp.exporting.formats import FORMATS
from exp.exporting.writing import export
from exp.extraction import config_of_architecture, read_architecture
from exp.profile import latencies
from exp.searching.machine import machine
from exp.trained import Trained
from exp.usage import UsageError
from models.mistakes import Mistake
from models.supernet import Searchable, chosen, searchable

SIZES = "sizes.json"
LATENCY = "--latency-ms"
# Turns in which all sizes are measured, as the machine may have other work meanwhile, and seconds of each in one.
_TURNS, _SECONDS = 5, 0.1


def export_sizes(made: Trained, name: str, files: list[Path], output: Path | None, images: int, int8: bool) -> Path:
    """Writes architectures of a supernet as files of their own, and a table of what they cost.

    Each gets, by the name of its file, what `export` writes, plain weights, and the config that they are for. All are
    measured on this machine in turns, image by image.

    Args:
        made: The supernet.
        name: Of the format.
        files: Of the architectures.
        output: The folder; by default `export` in the run's directory.
        images, int8: See `export`.

    Returns:
        The table.

    Raises:
        UsageError: A file whose architecture the network does not have, or two of the same name.
        Mistake: See `export`.
    """
    cli = made.cli
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        raise UsageError(f"--architecture: two files have one name, which names what is written: {', '.join(names)}")
    folder = output or output_folder(cli, made.checkpoint, "export")
    task, data = cli.model, cli.datamodule
    supernet, built = task.network, {}
    described = {file.stem: read_architecture(file) for file in files}
    for file in files:
        try:
            built[file.stem] = chosen(supernet, described[file.stem]).eval()
        except Mistake as error:
            raise UsageError(f"--architecture {file}: {error}") from None
    whole = searchable(supernet)
    assert isinstance(whole, Searchable)
    facts: list[dict[str, Any]] = []
    try:
        for size, network in built.items():
            task.network = network
            path = export(made, name, folder / f"{size}{FORMATS[name].suffix}", images, int8)
            config = config_of_architecture(cli.plain, described[size]) | {"experiment": size}
            write_whole(folder / f"{size}.yaml", yaml.safe_dump(config, sort_keys=False))
            try:
                write(network.state_dict(), folder / f"{size}.safetensors", data.pixels.plain())
            except ConvertError as error:
                raise UsageError(str(error)) from None
            cost = whole.cost(whole.space.read(described[size]))
            facts.append({"name": size, "file": path.name, "architecture": described[size], **cost})
    finally:
        task.network = supernet
    image = task.inputs(data.example(1))[0]
    times = _milliseconds(built, image)
    table = folder / SIZES
    sizes = [each | {"latency_ms": times[each["name"]]} for each in facts]
    here = machine(image.device) | {"image": list(image.shape[1:])}
    write_whole(table, json.dumps({"machine": here, "sizes": sizes}, indent=1) + "\n")
    for each in sizes:
        print(f"{each['name']}: {each['params']:,} parameters, {each['latency_ms']:.2f} ms for an image")
    print(f"in {table}; python -m exp predict RUN IMAGES {LATENCY}=X takes the largest that meets X milliseconds")
    return table


def meeting(options: list[str]) -> list[str]:
    """The options of `predict` with `--latency-ms`, with the size of a supernet that meets it in place of the run.

    Args:
        options: As they were typed, the run as `--ckpt_path`.

    Raises:
        UsageError: No sizes were written, on another machine, or none is as fast as that.
    """
    asked = option(options, LATENCY) or option(options, "--latency_ms")
    if asked is None:
        return options
    try:
        most = float(asked)
    except ValueError:
        raise UsageError(f"{LATENCY} {asked}: it is a number of milliseconds") from None
    run = option(options, "--ckpt_path")
    if run is None:
        raise UsageError(f"{LATENCY} is for a run whose sizes `export --architecture A,B` has written: name the run")
    try:
        checkpoint = find_checkpoint(run, Path(option(options, "--runs") or "runs"))
    except NoCheckpoint as error:
        raise UsageError(f"--ckpt_path {error}") from None
    table = checkpoint.resolve().parent.parent / "export" / SIZES
    size = _largest(table, most)
    print(f"{size['name']}: {size['latency_ms']:.2f} ms for an image, of {most:g} ms")
    rest = options
    for each in (LATENCY, "--latency_ms", "--ckpt_path"):
        rest = without_option(rest, each)
    return [
        f"--config={table.parent / size['name']}.yaml",
        f"--weights={table.parent / size['name']}.safetensors",
        *rest,
    ]


def _largest(table: Path, most: float) -> dict[str, Any]:
    """The size with the most multiply-adds that takes no longer than that."""
    try:
        found = json.loads(table.read_bytes())
        told, sizes = found["machine"], found["sizes"]
    except FileNotFoundError:
        raise UsageError(f"{LATENCY}: no {table}: `python -m exp export RUN --architecture A,B` writes it") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{table}: no table of sizes can be read from it: export anew") from None
    # Threads are set by the run's config, which has not been read yet.
    here = {name: value for name, value in machine(torch.device("cpu")).items() if name != "threads"}
    if other := [f"{name} {told.get(name)}, not {value}" for name, value in here.items() if told.get(name) != value]:
        raise UsageError(f"{table}: these sizes were measured elsewhere ({'; '.join(other)}): export them here")
    fast = [size for size in sizes if size["latency_ms"] <= most]
    if not fast:
        least = min(sizes, key=lambda size: size["latency_ms"])
        raise UsageError(f"{LATENCY} {most:g}: no size is as fast; {least['name']} takes {least['latency_ms']:.2f} ms")
    return max(fast, key=lambda size: size["multiply_adds"])


def _milliseconds(networks: dict[str, Any], image: torch.Tensor) -> dict[str, float]:
    """The shortest time that each takes for an image [1, C, H, W]; other work on the machine only adds to it."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad():
        for _ in range(_TURNS):
            for name, network in networks.items():
                seconds[name] += latencies(network, (image,), image.device, _SECONDS)
    return {name: 1e3 * min(each) for name, each in seconds.items()}
