"""What `export` does: trace, write, compare on real images, and keep the file only if it says what the network says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from callbacks.reports import predictions_of
from callbacks.whole_files import whole
from datamodules import DataError, Pixels
from exp.evaluation import output_folder
from exp.exporting.comparing import TOLERANCE, compare, latency
from exp.exporting.formats import FORMATS, Manifest, Runner, check_installed
from exp.exporting.graph import Graph, Portable, trace
from exp.trained import Trained
from exp.usage import UsageError
from lightning_modules.exporting import Exportable
from models.mistakes import Mistake


def export(made: Trained, name: str, output: Path | None, images: int, int8: bool) -> Path:
    """Writes a trained network into a file, and prints how it compares.

    Args:
        made: what is exported.
        name: of the format.
        output: the file; by default `export/model` in the run's directory, with the format's ending.
        images: how many of the validation split are compared.
        int8: whether a quantised file is written beside it.

    Returns:
        The file.

    Raises:
        Mistake: the network, or a part of it, cannot be exported, or the file says something else than the network.
    """
    cli, kind = made.cli, FORMATS[name]
    path = output or output_folder(cli, made.checkpoint, "export") / f"model{kind.suffix}"
    if path.suffix != kind.suffix:
        raise UsageError(f"--output {path}: a file of format {name} ends in {kind.suffix}")
    check_installed(kind)
    if not isinstance(cli.model, Exportable):
        raise Mistake(
            f"{type(cli.model).__name__} cannot be exported: it does not say what its network returns "
            "(lightning_modules.exporting)"
        )
    console = Console(emoji=False)
    pixels = getattr(cli.datamodule, "pixels", None) or Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    module = Portable(cli.model, pixels).cpu().eval()
    batches, real = _batches(made, module, images)
    graph, why = traced(module, batches[0])
    with _written(kind, graph, batches[0], _manifest(made, graph, pixels, batches[0]), path) as runner:
        given = batches if graph.any_size else [each for each in batches if each.shape == batches[0].shape]
        given = given if graph.any_batch else [image for each in given for image in each.split(1)]
        differences = compare(module.answer, runner, given)
        worst = max(differences, key=differences.__getitem__)
        if not differences[worst] <= TOLERANCE:
            raise Mistake(
                f"the file says something else than the network: its {worst} differ by {differences[worst]:.1e} of "
                f"their largest value, more than {TOLERANCE:g}; nothing was written"
            )
        seconds = latency(module.answer, batches[0][:1]), latency(runner, batches[0][:1])
    size = "any size" if graph.any_size else f"{batches[0].shape[2]}x{batches[0].shape[3]}"
    number = "any number of" if graph.any_batch else "one image at a time,"
    console.print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)", highlight=False, soft_wrap=True)
    lines = [
        f"input: image [batch, 3, height, width], RGB from 0 to 255, {number} {size}",
        *([f"of one size alone: {why}"] if why else []),
        f"outputs: {', '.join(graph.names)}",
        f"largest relative difference: {differences[worst]:.1e} ({worst}), on {sum(map(len, given))} "
        + ("images of the validation split" if real else "images of noise: the run's data are not here"),
        f"one image: torch {seconds[0] * 1e3:.2f} ms, {name} {seconds[1] * 1e3:.2f} ms "
        f"({torch.get_num_threads()} CPU threads)",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return path


def traced(module: Portable, images: Tensor) -> tuple[Graph, str]:
    """The graph for images of any size, or, where the network has none, of one; and then why.

    Args:
        module: the network.
        images: an example [B, 3, H, W].
    """
    try:
        return trace(module, images, any_size=True), ""
    except Mistake as error:
        return trace(module, images, any_size=False), str(error)


@contextmanager
def _written(kind: type[Runner], graph: Graph, images: Tensor, manifest: Manifest, path: Path) -> Iterator[Runner]:
    """The file under another name, opened; it gets its own if nothing is said against it."""
    with whole(path) as partial:
        kind.write(graph, images, manifest, partial)
        yield kind(partial)


def _manifest(made: Trained, graph: Graph, pixels: Pixels, images: Tensor) -> Manifest:
    size = None if graph.any_size else (images.shape[2], images.shape[3])
    notes: dict[str, Any] = {}
    for report in predictions_of(type(made.cli.model))[:1]:
        notes = dict(report.notes(made.content))
    return Manifest(
        made.cli.config_text(), made.names, graph.names, size, graph.any_batch, pixels.plain(), notes
    )


def _batches(made: Trained, module: Portable, number: int) -> tuple[list[Tensor], bool]:
    """Images of the run's validation split as a file takes them, by size; or noise where the data are not here."""
    data, real = made.cli.datamodule, True
    images: list[Tensor] = []
    with suppress(DataError):
        data.setup("validate")
        for batch in data.val_dataloader():
            images += list(data.on_after_batch_transfer(batch, 0)["image"])
            if len(images) >= number:
                break
    if not images:
        images, real = list(data.example(2)["image"]), False
    by_size: dict[torch.Size, list[Tensor]] = {}
    for image in images[:number]:
        by_size.setdefault(image.shape, []).append(module.normalisation.undone(image))
    return [torch.stack(each) for each in sorted(by_size.values(), key=len, reverse=True)], real
