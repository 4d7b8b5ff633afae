"""Arrays in files, mapped into the memory of each process that has them."""

from __future__ import annotations

import math
import mmap
import os
import weakref
from multiprocessing import context, reduction
from pathlib import Path
from typing import Any, Literal

import numpy as np


class MappedArray:
    """A ``.npy`` file, memory-mapped; it stays readable when the file is removed.

    A worker process is handed the open file; pickled otherwise, the path is what remains.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is no ``.npy`` file of numbers or text.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, where: int | slice) -> np.ndarray:
        # A copy: what comes next may write to it, and must not write to the file.
        return np.array(self._array[where])

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        """Type of its elements."""
        return self._array.dtype

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = {"path": self.path}
        if context.get_spawning_popen() is not None:
            state["descriptor"] = reduction.DupFd(self._descriptor)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        inherited = state.get("descriptor")
        self._map(inherited.detach() if inherited else os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))

    def _map(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        content = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        # Processes that share an open file share its position, too: the header is read from the map.
        version = np.lib.format.read_magic(content)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"{self.path} has version {version} of the .npy format, which is unknown here")
        shape, by_column, dtype = read[version](content)
        if dtype.hasobject:
            raise ValueError(f"{self.path} holds objects, which are never loaded")
        order: Literal["C", "F"] = "F" if by_column else "C"
        start = content.tell()
        if math.prod(shape) * dtype.itemsize > len(content) - start:
            raise ValueError(f"{self.path} is shorter than its header says")
        self._array: np.ndarray = np.ndarray(shape, dtype, content, start, order=order)
