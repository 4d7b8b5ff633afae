"""What an inference of the run's network costs, measured on the data that it was evaluated on."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from callbacks.reports.report import Report
from lightning_modules.task import Batch
from models.compute import executed, inference

# Seconds that a latency is measured for; one run more is made however long it takes.
LATENCY_SECONDS = 0.05


class Cost(Report):
    """Keeps some samples of the last evaluation, and counts on them what the network executes.

    A dynamic network spends another amount on each image, so the samples are the first ones of the split: the same in
    every run of an experiment.

    Args:
        samples: how many, at most; one batch may hold fewer.
    """

    in_every_run = False
    splits = ("val", "test", "predict")

    def __init__(self, samples: int = 64) -> None:
        self.samples = samples
        # What the network takes for them; empty where there is no forward pass to be measured.
        self.inputs: tuple[Any, ...] = ()
        self._first = False

    @override
    def start(self) -> None:
        self._first = True

    @override
    def look(self, batch: Batch) -> None:
        if self._first:
            self.inputs, self._first = self.task.inputs(first_samples(batch, self.samples)), False

    def measure(self, network: nn.Module, timed: bool = False) -> dict[str, float]:
        """Parameters, and the multiply-adds an image that really ran; empty if nothing was evaluated.

        Args:
            network: in the state to be measured, on any device.
            timed: whether to measure the milliseconds an image, too: of processor time on a CPU, where others may work.
        """
        if not self.inputs:
            return {}
        device = next(network.parameters()).device
        inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), self.inputs)
        # Operators are counted as they are dispatched, which compiled code leaves out.
        with torch.compiler.set_stance("force_eager"):
            report = executed(network, *inputs)
            cost = {"params": report.params, "macs": report.macs, "macs_samples": len(inputs[0])}
            if timed:
                cost["latency"] = 1e3 * _seconds(network, inputs, device) / len(inputs[0])
        return cost


def _seconds(network: nn.Module, inputs: tuple[Any, ...], device: torch.device) -> float:
    """Median seconds of an inference that has run before."""
    measured: list[float] = []
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    with inference(network):
        while not measured or sum(measured) < LATENCY_SECONDS:
            if on_gpu:
                torch.cuda.synchronize(device)
            started = clock()
            network(*inputs)
            if on_gpu:
                torch.cuda.synchronize(device)
            measured.append(max(clock() - started, 1e-9))
    return statistics.median(measured)


def first_samples(batch: Batch, samples: int) -> Batch:
    """A copy of the first samples of a batch.

    Args:
        batch: tensors [B, ...] and lists of B things.
        samples: how many, at most.
    """
    return {key: tree_map_only(Tensor, torch.clone, value[:samples]) for key, value in batch.items()}
