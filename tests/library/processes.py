"""Two processes that train together, for what they have to agree on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import start_processes

Values = dict[str, Tensor]


def on_two_processes(function: Callable[[int], Values], folder: Path) -> list[Values]:
    """What a function of its rank returns on each of two processes connected by gloo.

    Args:
        function: Called on both; what it returns is detached.
        folder: Empty, for what they exchange.
    """
    # Forked, since starting an interpreter takes longer than all else here.
    start_processes(_process, (function, str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def on_two_fresh_processes(function: Callable[..., Values], arguments: tuple[Any, ...], folder: Path) -> list[Values]:
    """The same for a function of a module, called with its rank and arguments, which takes backward passes.

    PyTorch refuses these in a fork of a process that has taken one itself.
    """
    start_processes(_process, (partial(_called, function, arguments), str(folder)), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _called(function: Callable[..., Values], arguments: tuple[Any, ...], rank: int) -> Values:
    return function(rank, *arguments)


def averaged(processes: list[Values]) -> Values:
    """The mean over the processes, which is what DDP takes of gradients."""
    first, second = processes
    return {name: (value + second[name]) / 2 for name, value in first.items()}


def _process(rank: int, function: Callable[[int], Values], folder: str) -> None:
    # Threads of the process before the fork are gone.
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({name: value.detach() for name, value in function(rank).items()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
