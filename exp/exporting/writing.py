"""What `export` does: trace, write, compare on real images, and keep the file only if it says what the network says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from callbacks.reports import predictions_of
from callbacks.whole_files import whole
from datamodules import DataError, Pixels
from exp.evaluation import output_folder
from exp.exporting.comparing import TOLERANCE, compare, latency, tolerances
from exp.exporting.formats import FORMATS, Manifest, OnnxFile, Runner, check_installed
from exp.exporting.graph import Graph, Portable, trace
from exp.exporting.quantising import quantise
from exp.exporting.runtime import put
from exp.trained import Trained
from exp.usage import UsageError
from lightning_modules.exporting import Exportable
from models.mistakes import Mistake

# Pixels that the sides of a noise image are longer than those of the data: a multiple of most strides.
OTHER = 32


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
    if int8 and kind is not OnnxFile:
        raise UsageError(f"--int8 is for onnx, not for {name}: leave one of them out")
    if not isinstance(cli.model, Exportable):
        raise Mistake(
            f"{type(cli.model).__name__} cannot be exported: it does not say what its network returns "
            "(lightning_modules.exporting)"
        )
    pixels = getattr(cli.datamodule, "pixels", None) or Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    module = Portable(cli.model, pixels).cpu().eval()
    batches, real = _batches(made, module, images)
    manifest = partial(_manifest, made, pixels)
    try:
        found, why = _written(kind, module, batches, manifest, path, any_size=True), ""
    except Mistake as error:
        found, why = _written(kind, module, batches, manifest, path, any_size=False), str(error)
    _tell(found, name, why, real)
    if int8:
        _tell_quantised(made, found, _quantised(found, batches))
    return path


@dataclass(frozen=True)
class Written:
    """A file that says what its network says.

    Args:
        path: the file.
        manifest: what it says of itself.
        differences: largest relative difference of each output.
        images: how many of the data were compared.
        seconds: for one image, of the network and of the file.
    """

    path: Path
    manifest: Manifest
    differences: dict[str, float]
    images: int
    seconds: tuple[float, float]


def _written(
    kind: type[Runner],
    module: Portable,
    batches: list[Tensor],
    manifest: Callable[[Graph, Tensor], Manifest],
    path: Path,
    any_size: bool,
) -> Written:
    """The file, which gets its name once it has said the same as the network.

    Raises:
        Mistake: it cannot be written, or says something else.
    """
    graph = trace(module, batches[0], any_size)
    given = batches if any_size else [each for each in batches if each.shape[2:] == batches[0].shape[2:]]
    if not graph.any_batch:
        given = [image for each in given for image in each.split(1)]
    # Sizes that the run's data do not have.
    others = [_noise(batches[0])] if any_size else []
    with whole(path) as partial_path:
        kind.write(graph, batches[0][:1], manifest(graph, batches[0]), partial_path)
        runner = kind(partial_path)
        # What it says of itself is said under the name that it will have.
        runner.path = path
        differences = compare(module.answer, runner, given)
        for some, found in ((given, differences), (others, compare(module.answer, runner, others))):
            most = tolerances(module, some, found)
            for output, difference in found.items():
                if not difference <= most[output]:
                    raise Mistake(
                        f"the file says something else than the network: its {output} differ by {difference:.1e} of "
                        f"their largest value, more than {most[output]:.2g}; nothing was written"
                    )
        seconds = latency(module.answer, batches[0][:1]), latency(runner, batches[0][:1])
    return Written(path, runner.manifest, differences, sum(map(len, given)), seconds)


def _noise(images: Tensor) -> Tensor:
    """An image [1, 3, H', W'] of another size."""
    height, width = images.shape[-2:]
    random = torch.Generator().manual_seed(0)
    return 255 * torch.rand(1, images.shape[1], height + OTHER, width + 2 * OTHER, generator=random)


def _tell(written: Written, name: str, why: str, real: bool) -> None:
    console, manifest = Console(emoji=False), written.manifest
    size = "of any size" if manifest.size is None else f"of {manifest.size[0]}x{manifest.size[1]} pixels"
    number = "any number of them" if manifest.any_batch else "one at a time"
    worst = max(written.differences, key=written.differences.__getitem__)
    lines = [
        f"wrote {written.path} ({written.path.stat().st_size / 2**20:.1f} MiB)",
        f"input: image [batch, 3, height, width], RGB from 0 to 255, {size}, {number}",
        *([f"of one size alone: {why}"] if why else []),
        f"outputs: {', '.join(manifest.outputs)}",
        f"largest relative difference: {written.differences[worst]:.1e} ({worst}), on {written.images} "
        + ("images of the validation split" if real else "images of noise: the run's data are not here"),
        *(
            [f"that is more than {TOLERANCE:g}, but rounding alone changes the network's own answer as much"]
            if written.differences[worst] > TOLERANCE
            else []
        ),
        f"one image: torch {written.seconds[0] * 1e3:.2f} ms, {name} {written.seconds[1] * 1e3:.2f} ms "
        f"({torch.get_num_threads()} CPU threads)",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _quantised(written: Written, batches: list[Tensor]) -> Path:
    """A file of eight bits beside the one that was written."""
    path = written.path.with_suffix(f".int8{written.path.suffix}")
    images = [image for batch in batches for image in batch.split(1)]
    size = written.manifest.size
    given = [image for image in images if size is None or tuple(image.shape[2:]) == size]
    with whole(path) as partial_path:
        quantise(written.path, partial_path, given)
    return path


def _tell_quantised(made: Trained, written: Written, path: Path) -> None:
    task, data = made.cli.model, made.cli.datamodule
    network, found, seconds = task.network, [], []
    name = (task.monitor or "val/loss").partition("/")[2]
    image = 255 * torch.rand(1, 3, *(written.manifest.size or data.example(1)["image"][0].shape[-2:]))
    try:
        for each in (written.path, path):
            runner = OnnxFile(each)
            put(task, runner)
            metrics = task.evaluate(data.val_dataloader(), "val", data).metrics
            found.append(float(metrics[name]))
            seconds.append(latency(runner, image))
    finally:
        task.network = network
    print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    print(f"val/{name}: {found[0]:.4f} before, {found[1]:.4f} with eight bits")
    print(f"one image: {seconds[0] * 1e3:.2f} ms before, {seconds[1] * 1e3:.2f} ms with eight bits")


def _manifest(made: Trained, pixels: Pixels, graph: Graph, images: Tensor) -> Manifest:
    size = None if graph.any_size else (images.shape[2], images.shape[3])
    notes: dict[str, Any] = {}
    for report in predictions_of(type(made.cli.model))[:1]:
        notes = dict(report.notes(made.content))
    return Manifest(made.cli.config_text(), made.names, graph.names, size, graph.any_batch, pixels.plain(), notes)


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
