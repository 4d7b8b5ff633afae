"""File names in one byte tensor: a worker process gets it as shared memory, not as a million strings."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch


class PackedNames:
    """Names of files, by position.

    Args:
        names: The names, as bytes.
    """

    def __init__(self, names: Sequence[bytes]) -> None:
        self._bytes = torch.frombuffer(bytearray(b"".join(names)) or bytearray(1), dtype=torch.uint8)
        self._ends = torch.from_numpy(np.cumsum(np.fromiter(map(len, names), np.int64, len(names))))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start, end = int(self._ends[index - 1]) if index else 0, int(self._ends[index])
        return os.fsdecode(self._bytes[start:end].numpy().tobytes())
