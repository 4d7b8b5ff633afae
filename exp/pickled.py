"""What a pickle may say that is built: tensors, arrays, containers and namespaces; everything else is a `Record`."""

from __future__ import annotations

import re
from argparse import Namespace
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

# By the name of a file's storage class. What is quantised is not built.
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
# Elements that a tensor may have beyond those of its storage, by repeating some: an expanded tensor.
_MOST_REPEATED = 2**24
_MOST_AXES = 64


class PickleError(ValueError):
    """A pickle that is torn, or that says what cannot be; the message says what."""


@dataclass(frozen=True)
class Name:
    """What a file calls a class or a function."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Record:
    """An object of a class that is not built.

    Args:
        kind: The class, or the function that was to be called.
        arguments: What it was to be called with.
        state: The object's attributes.
        items: What was to be put into it by key.
        elements: What was to be appended to it.
    """

    kind: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.kind}>"


@dataclass(frozen=True, eq=False)
class Storage:
    """Memory of tensors.

    Args:
        memory: The bytes, perhaps on the meta device.
        dtype: What the numbers in it are, unless a tensor says otherwise.
    """

    memory: torch.UntypedStorage
    dtype: torch.dtype


@dataclass(eq=False)
class Dtype:
    """A type of numpy's; its byte order comes after it."""

    code: str
    order: str = "="

    def built(self) -> np.dtype | None:
        """numpy's own; None for records, times and what numpy does not know by itself."""
        if not re.fullmatch(r"[biufcSUO]\d{0,6}|[?]", self.code) or self.order not in ("<", ">", "=", "|"):
            return None
        order: Any = "=" if self.order == "|" else self.order
        return np.dtype(self.code).newbyteorder(order)


class Array:
    """numpy's array before its state has come."""


def plain_key(value: Any, depth: int = 0) -> Hashable:
    """A key of a dictionary: a plain value or a short tuple of them; the hash of what is nested may take years.

    Raises:
        PickleError: It is none.
    """
    if isinstance(value, tuple):
        if depth == 2 or len(value) > 64:
            raise PickleError("a key that is nested")
        return tuple(plain_key(each, depth + 1) for each in value)
    if value is None or isinstance(value, str | bytes | int | float | complex | torch.dtype | torch.device):
        return value
    if isinstance(value, Record | Name | PurePosixPath | PureWindowsPath | frozenset):
        return value
    raise PickleError(f"a {type(value).__name__} as a key")


def tensor(
    storage: Storage, offset: int, size: Iterable[int], stride: Iterable[int], *_: Any, dtype: torch.dtype | None = None
) -> Tensor:
    """A tensor in a storage.

    Args:
        storage: Its memory.
        offset: Of its first number, in numbers.
        size: Its shape.
        stride: Numbers from one to the next along each axis.
        dtype: What the numbers are; None for what the storage says.

    Raises:
        PickleError: It lies outside of the storage.
    """
    if not isinstance(storage, Storage):
        raise PickleError("a tensor without a storage")
    dtype = dtype or storage.dtype
    size, stride = tuple(size), tuple(stride)
    there = storage.memory.nbytes() // dtype.itemsize
    plain = all(type(number) is int and 0 <= number < 2**62 for number in (offset, *size, *stride))
    if not plain or len(size) != len(stride) or len(size) > _MOST_AXES:
        raise PickleError("a tensor of a shape that cannot be")
    count = prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else 0
    if (count and last >= there) or offset > there or count > there + _MOST_REPEATED:
        raise PickleError("a tensor that is larger than its storage")
    made = torch.empty(0, dtype=dtype, device=storage.memory.device)
    return made.set_(storage.memory, offset, size, stride)


def _tensor_v3(storage: Storage, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    return tensor(storage, offset, size, stride, dtype=rest[2])


def _first_tensor(data: Any, *_: Any) -> Tensor:
    """What a parameter, or a tensor of an accelerator, holds."""
    if not isinstance(data, Tensor):
        raise PickleError("a parameter without a tensor")
    return data


def _bytes(text: Any = b"", encoding: Any = "latin1") -> bytes:
    if isinstance(text, str) and encoding in ("latin1", "latin-1"):
        return text.encode("latin-1")
    if isinstance(text, bytes | bytearray):
        return bytes(text)
    raise PickleError("bytes that are none")


def _dtype(code: Any, *_: Any) -> Dtype:
    return Dtype(str(code)[:20])


def _scalar(dtype: Dtype, data: Any = b"") -> Any:
    kind = dtype.built()
    if kind is None or kind.hasobject:
        return Record(f"numpy.{dtype.code}", (data,))
    data = _bytes(data)
    if kind.itemsize == 0 or len(data) != kind.itemsize:
        raise PickleError("a number of another size than its type")
    return np.frombuffer(data, kind)[0].item()


def array_of_state(*state: Any) -> Any:
    """An array by the state that numpy gives it."""
    # The version of this state, which comes first, is left out by old pickles.
    shape, dtype, in_columns, data = state[-4:]
    return array(data, dtype, shape, "F" if in_columns else "C")


def array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    """An array: a tensor if it is of numbers, and otherwise a list.

    Raises:
        PickleError: The data are not as long as the shape says.
    """
    kind = dtype.built() if isinstance(dtype, Dtype) else np.dtype(dtype)
    if kind is None or kind.kind not in "biufcSUO":
        return Record(f"numpy array of {dtype}")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if not all(type(length) is int and length >= 0 for length in shape) or len(shape) > _MOST_AXES:
        raise PickleError("an array of a shape that cannot be")
    if kind.hasobject:
        if not isinstance(data, list) or len(data) != prod(shape):
            raise PickleError("an array of another size than its shape")
        return data if shape else data[0]
    data = _bytes(data)
    if len(data) != prod(shape) * kind.itemsize:
        raise PickleError("an array of another size than its shape")
    numbers = np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C")
    if kind.kind in "SU" or kind.itemsize > 16 or kind.char in "gG":
        return numbers.tolist()
    return torch.from_numpy(np.array(numbers, dtype=kind.newbyteorder("="), order="C"))


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    return array(data, dtype, shape, order)


def _dict(*given: Any) -> dict[Any, Any]:
    """What a dictionary of a kind is made from: nothing, another one or pairs."""
    pairs = list(given[0].items() if isinstance(given[0], Mapping) else given[0]) if given else []
    return {plain_key(key): value for key, value in pairs}


def _set(*given: Iterable[Any]) -> set[Any]:
    return set(map(plain_key, given[0])) if given else set()


def _size(given: Any = ()) -> torch.Size:
    if not all(type(length) is int and 0 <= length < 2**62 for length in given):
        raise PickleError("a shape that cannot be")
    return torch.Size(given)


def _device(kind: Any, index: Any = None) -> torch.device:
    try:
        return torch.device(kind) if index is None else torch.device(kind, index)
    except RuntimeError as error:
        raise PickleError("a device that is none") from error


def _path(kind: type[PurePosixPath] | type[PureWindowsPath]) -> Callable[..., Any]:
    return lambda *parts: kind(*(str(part) for part in parts if isinstance(part, str)))


def _numpy(name: str) -> list[str]:
    """What numpy 1 and 2 call the same."""
    return [f"numpy.core.{name}", f"numpy._core.{name}"]


# By what is named in a file. Nothing in it has an effect outside of what it returns.
BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": tensor,
    "torch._utils._rebuild_tensor_v2": tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first_tensor,
    "torch._utils._rebuild_parameter_with_state": _first_tensor,
    "torch._utils._rebuild_xla_tensor": _first_tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": _first_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first_tensor,
    "torch.nn.parameter.Parameter": _first_tensor,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": lambda *given: OrderedDict(_dict(*given)),
    "collections.Counter": lambda *given: Counter(_dict(*given)),
    "collections.defaultdict": lambda *given: _dict(*given[1:]),
    "builtins.dict": _dict,
    "builtins.list": lambda *given: list(given[0]) if given else [],
    "builtins.set": _set,
    "builtins.frozenset": lambda *given: frozenset(_set(*given)),
    "builtins.bytes": _bytes,
    "builtins.bytearray": lambda *given: bytearray(_bytes(*given)),
    "builtins.complex": lambda real, imaginary: complex(float(real), float(imaginary)),
    "_codecs.encode": _bytes,
    # Dictionaries that do not change, of networks of JAX.
    **{f"haiku._src.data_structures.{kind}": _dict for kind in ("FlatMapping", "FlatMap", "frozendict")},
    "argparse.Namespace": lambda *_: Namespace(),
    "types.SimpleNamespace": lambda *_: Namespace(),
    "numpy.dtype": _dtype,
    **dict.fromkeys(_numpy("multiarray._reconstruct"), lambda *_: Array()),
    **dict.fromkeys(_numpy("multiarray.scalar"), _scalar),
    **dict.fromkeys(_numpy("numeric._frombuffer"), _frombuffer),
    **{
        f"{module}.{kind}": _path(PureWindowsPath if kind.endswith("WindowsPath") else PurePosixPath)
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    },
}
