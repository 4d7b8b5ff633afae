"""Two processes that train together, for what they have to agree on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import start_processes

from tests.library.copies import copies_train

Values = dict[str, Tensor]


def on_two_processes(function: Callable[[int], Values], folder: Path, picklable: bool = False) -> list[Values]:
    """What a function of its rank returns on each of two processes connected by gloo.

    Args:
        function: Called on both; what it returns is detached.
        folder: Empty, for what they exchange.
        picklable: Whether the function can be given to a fresh interpreter.
    """
    # Forked, since starting an interpreter takes longer than all else here.
    fresh = picklable and not copies_train()
    start_processes(_process, (function, str(folder)), nprocs=2, start_method="spawn" if fresh else "fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


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
