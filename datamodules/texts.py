"""Many short texts in two tensors: worker processes share them, and none is a Python object until it is asked for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch


class Texts:
    """Texts by position.

    Args:
        texts: In order; characters that are no characters, as broken files have them, stay as they are.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode(errors="surrogatepass") for text in texts]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._ends = torch.from_numpy(ends)
        self._bytes = torch.from_numpy(np.frombuffer(b"".join(encoded) or b"\0", np.uint8).copy())

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index : index + 2].tolist()
        return self._bytes[start:end].numpy().tobytes().decode(errors="surrogatepass")
