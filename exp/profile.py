"""`python -m exp profile --config CONFIG`: what a network costs, counted and measured."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import nn

    from models.compute import ComputeReport

WARM_UP_RUNS = 3
MIN_RUNS = 10


@dataclass(frozen=True)
class ProfileReport:
    """Cost of an inference.

    Args:
        device: Where it ran.
        input_size: Channels, height, width of an image.
        batch_size: Images in a batch.
        dense: Multiply-adds per image by shapes alone, or, of a network whose shapes depend on the image, what ran.
        executed: Multiply-adds per image of the operators that ran.
        latency_median: Seconds for a batch.
        latency_p95: Seconds for a batch that 95 % of the runs did not exceed.
        images_per_second: Batch size by median latency.
        peak_memory: Bytes of weights, input and activations when most of them were alive.
        runs: Timed runs.
    """

    device: str
    input_size: tuple[int, ...]
    batch_size: int
    dense: ComputeReport
    executed: ComputeReport
    latency_median: float
    latency_p95: float
    images_per_second: float
    peak_memory: int
    runs: int


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: Arguments after `profile`; those that are not options here configure the network, as for `fit`.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m exp profile",
        usage="%(prog)s --config CONFIG [overrides as for fit] [options]",
        description="Report what a network costs: parameters, multiply-adds, latency, memory.",
        allow_abbrev=False,
    )
    parser.add_argument("--batch_size", type=_positive, default=1, help="images in a batch (default: 1)")
    parser.add_argument("--input_size", type=_positive, nargs=3, metavar=("C", "H", "W"), help="default: the config's")
    parser.add_argument("--depth", type=int, default=2, help="levels of modules in the table (default: 2)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time to measure latency for (default: 2)")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    options, config = parser.parse_known_args(argv)

    import torch

    from exp.cli import Cli
    from exp.quiet import silence
    from exp.usage import UsageError

    silence()
    cli = Cli(config, "profile")
    batch = cli.datamodule.example(options.batch_size)
    if options.input_size:
        batch |= {"image": _noise(batch["image"], options.input_size)}
    inputs = cli.model.inputs(batch)
    if not inputs:
        raise UsageError(f"{type(cli.model).__name__} runs no network on images, so there is nothing to profile")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    report = profile(cli.model.network.to(device), inputs, options.seconds)
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        show(report, options.depth)
    return 0


def profile(network: nn.Module, inputs: tuple[Any, ...], seconds: float = 2.0) -> ProfileReport:
    """Count and measure an inference, where the network is; it is left in its mode.

    Args:
        network: What is profiled.
        inputs: What it takes; the first has an image [C, H, W] for each of the batch.
        seconds: Time to measure latency for; at least ten runs are made however long they take.

    Returns:
        The report.
    """
    import torch
    from torch.utils._pytree import tree_map_only

    from models.compute import NotCountable, count, executed, inference

    reference = next(network.parameters(), torch.empty(0))
    inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(reference.device), inputs)
    device = reference.device
    with inference(network):
        measured = latencies(network, inputs, device, seconds)
        peak_memory = _peak_memory(network, inputs, device)
    ran = executed(network, *inputs)
    try:
        dense = count(network, inputs=inputs)
    except NotCountable:
        dense = ran
    median = _quantile(measured, 0.5)
    on_gpu = reference.is_cuda
    return ProfileReport(
        device=torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        input_size=tuple(inputs[0][0].shape),
        batch_size=len(inputs[0]),
        dense=dense,
        executed=ran,
        latency_median=median,
        latency_p95=_quantile(measured, 0.95),
        images_per_second=len(inputs[0]) / median,
        peak_memory=peak_memory,
        runs=len(measured),
    )


def show(report: ProfileReport, depth: int) -> None:
    """Print a report for people: a summary, and a table of modules down to `depth` levels."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    dense, ran = report.dense, report.executed
    summary = Table(show_header=False, box=None)
    size = " x ".join(map(str, report.input_size))
    for name, value in (
        ("input", f"{report.batch_size} x {size}"),
        ("device", report.device),
        ("parameters", f"{dense.params:,} ({dense.params / 1e6:.3f} M)"),
        (
            "multiply-adds",
            f"{_readable(dense.macs)} an image, {_readable(dense.conv_linear_macs)} in convolutions and linear layers",
        ),
        (
            "executed",
            f"{_readable(ran.macs)} an image ({ran.macs / dense.macs:.1%})" if dense.macs else _readable(ran.macs),
        ),
        ("latency", f"median {report.latency_median * 1e3:.2f} ms, p95 {report.latency_p95 * 1e3:.2f} ms a batch"),
        ("throughput", f"{report.images_per_second:.1f} images/s over {report.runs} runs"),
        ("peak memory", f"{report.peak_memory / 2**20:.1f} MiB"),
    ):
        summary.add_row(name, escape(value))
    modules = Table("module", "type")
    for column in ("parameters", "multiply-adds", "executed"):
        modules.add_column(column, justify="right")
    for counted, measured in zip(dense.modules, ran.modules, strict=True):
        if counted.depth <= depth and (counted.params or counted.macs):
            modules.add_row(
                escape(counted.name) or "network",
                counted.type,
                f"{counted.params:,}",
                _readable(counted.macs),
                _readable(measured.macs),
            )
    console = Console(emoji=False)
    console.print(modules)
    console.print(summary)


def latencies(
    network: Callable[..., Any],
    inputs: tuple[Any, ...],
    device: torch.device,
    seconds: float,
    least: int = MIN_RUNS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds that each of some inferences takes, after a few that are not counted.

    Args:
        network: In evaluation mode, or a part of one.
        inputs: What it takes, where it is.
        device: Where it is.
        seconds: Time to measure for.
        least: Inferences however long they take.
        clock: Tells the time in seconds.
    """
    import torch

    measured: list[float] = []
    for _ in range(WARM_UP_RUNS):
        network(*inputs)
    while len(measured) < least or sum(measured) < seconds:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = clock()
        network(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        measured.append(clock() - start)
    return measured


def _peak_memory(network: nn.Module, inputs: tuple[Any, ...], device: torch.device) -> int:
    import torch
    from torch.utils._pytree import tree_leaves

    from models.memory import PeakMemory

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        network(*inputs)
        return torch.cuda.max_memory_allocated(device)
    # The CPU allocator keeps no peak.
    tensors = [each for each in tree_leaves(inputs) if isinstance(each, torch.Tensor)]
    with PeakMemory([*network.parameters(), *network.buffers(), *tensors]) as memory:
        network(*inputs)
    return memory.peak


def _noise(images: Any, size: Sequence[int]) -> Any:
    """Images of another size than the data's, as the data has them: in one tensor or a list."""
    import torch

    noise = torch.randn(len(images), *size, generator=torch.Generator().manual_seed(0))
    return noise if isinstance(images, torch.Tensor) else list(noise.unbind())


def _quantile(values: list[float], fraction: float) -> float:
    return sorted(values)[min(len(values) - 1, round(fraction * (len(values) - 1)))]


def _readable(macs: float) -> str:
    return f"{macs / 1e9:.4f} G" if macs >= 1e8 else f"{macs / 1e6:.4f} M"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number
