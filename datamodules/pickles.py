"""Pickles of data sets, of which arrays, containers, texts and numbers are built, and nothing else."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from typing_extensions import override

from datamodules.errors import DataError

# All that such files name: arrays, and the strings that Python 2 wrote their bytes as.
ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
# What reading a torn or made-up pickle leads to.
_FAULTS = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError)


class _ArrayUnpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither an array nor a text")
        return super().find_class(module, name)


def unpickled(content: bytes, path: Path) -> Any:
    """What a pickle holds, texts of Python 2 as latin-1.

    Args:
        content: Of the file.
        path: Its name, for messages.

    Raises:
        DataError: It is torn, or names anything that would be called.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except _FAULTS as problem:
        raise DataError(f"{path} cannot be read: {problem}.") from problem
