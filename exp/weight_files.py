"""Files of weights as they are met: torch's of any age, pickles of arrays, numpy's and safetensors; never executed.

What a file is, is told from its bytes and not from its name.
"""

from __future__ import annotations

import lzma
import mmap
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from exp.mistaken_files import AGAIN, what_it_is
from exp.pickled import STORAGES, Name, PickleError, Record, Storage, array, plain_key
from exp.unpickling import unpickle
from models.official import some

# What torch writes first into a file that is no archive.
_TORCH, _TORCH_VERSION = 0x1950A86A20F9469CFC6C, 1001
# The oldest pickles are text.
_PICKLES = (b"\x80", b"(dp", b"(lp", b"(d", b"}q", b"]q", b"ccollections\n", b"ccopy_reg\n", b"cnumpy")
_LONGEST_HEADER = 100_000_000
_MOST_MODULES = 100_000
_CHUNK = 1 << 22
# What may go wrong within an archive whose bytes are not what was written.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError, IndexError, ValueError, TypeError),
    *(struct.error, AttributeError, NotImplementedError, RuntimeError, OverflowError, RecursionError),
)


class WeightFileError(ValueError):
    """A file that weights cannot be read from; the message says what the file is, without its name.

    Args:
        what: What it is.
        remedy: What to do about it, where `what` does not say so.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        # It may quote a damaged file.
        self.what = "".join(letter if letter.isprintable() else "?" for letter in what)
        super().__init__(f"{self.what}: {remedy}" if remedy else self.what)


def read(path: Path, tensors: bool = True) -> Any:
    """Reads a file of weights, without executing anything in it.

    Args:
        path: A file of `torch.save` of any version, a pickle, `.npz` or `.npy` of numpy, or safetensors.
        tensors: Whether the numbers are wanted. Without them tensors are on the meta device, and of an archive of torch
            and of safetensors only the small part that names them is read.

    Returns:
        What the file holds, on the CPU: arrays and their like as tensors, a network that was saved whole as its weights
        by name, and an `exp.pickled.Record` of what is not built.

    Raises:
        WeightFileError: It is no such file, or not whole.
    """
    try:
        check(path)
        with path.open("rb") as file:
            content = _plain(_read(file, path, tensors))
        if isinstance(content, Record):
            raise WeightFileError(f"not a checkpoint (it holds an object, {some([content.kind])}, not named tensors)")
        return content
    except OSError as error:
        raise WeightFileError(f"not readable ({error.strerror or type(error).__name__})") from error
    except MemoryError:
        raise WeightFileError("larger than the memory of this machine") from None
    except WeightFileError:
        raise
    except PickleError as error:
        raise WeightFileError(f"cut off or damaged ({error})", AGAIN) from error
    except _BROKEN as error:
        raise WeightFileError("cut off or damaged (no whole file)", AGAIN) from error


def check(path: Path) -> None:
    """Whether there is a file to read at all.

    Raises:
        WeightFileError: There is none.
    """
    try:
        if path.is_dir():
            raise WeightFileError("a folder: give the file of weights in it")
        path.open("rb").close()
    except FileNotFoundError:
        raise WeightFileError("no such file") from None
    except OSError as error:
        raise WeightFileError(f"not readable ({error.strerror or type(error).__name__})") from error


def _read(file: IO[bytes], path: Path, tensors: bool) -> Any:
    start = file.read(1024)
    file.seek(0)
    if not start:
        raise WeightFileError("empty, a file of 0 bytes", AGAIN)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _archive(file, tensors)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _LONGEST_HEADER:
        return _safetensors(path, tensors)
    if start.startswith(b"\x93NUMPY"):
        return _numpy(file)
    if start.startswith(_PICKLES):
        # Unlike a file it gives no more memory than it has bytes, whatever length is asked for.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _pickle(content, len(content), tensors)
    raise WeightFileError(what_it_is(start, file, path))


def _archive(file: IO[bytes], tensors: bool) -> Any:
    """An archive of torch, or numpy's `.npz`."""
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            program = next((name for name in entries if name.rpartition("/")[2] == "data.pkl"), "")
            root = program.removesuffix("data.pkl")
            if program and f"{root}constants.pkl" not in entries:
                return _TorchArchive(archive, entries, root, size, tensors).read()
            if entries and all(name.endswith(".npy") for name in entries):
                return {name.removesuffix(".npy"): _numpy(BytesIO(archive.read(name))) for name in entries}
    except (WeightFileError, PickleError):
        raise
    except _BROKEN as error:
        # What zipfile itself says is plain; other errors are those of a program that was led astray.
        why = str(error) if isinstance(error, zipfile.BadZipFile) else "no whole zip archive"
        raise PickleError("its end is missing" if why == "File is not a zip file" else why) from error
    if program:
        raise WeightFileError(
            "a program of TorchScript, which would have to be executed: save its weights alone, by "
            "torch.save(module.state_dict(), ...)"
        )
    raise WeightFileError(
        f"a zip archive without a checkpoint of torch in it (it has {some(entries, 3) or 'nothing'}): unpack it first"
    )


class _TorchArchive:
    """The archive that torch writes since 1.6: a pickle, and an entry for each storage."""

    def __init__(
        self, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], root: str, size: int, tensors: bool
    ) -> None:
        self.archive, self.entries, self.root, self.size, self.tensors = archive, entries, root, size, tensors
        self.storages: dict[str, Storage] = {}
        self.order = self._bytes("byteorder") if f"{root}byteorder" in entries else b"little"

    def read(self) -> Any:
        return unpickle(BytesIO(self._bytes("data.pkl")), self._storage, _nested)

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = self.entries.get(self.root + name)
        if entry is None:
            raise PickleError(f"{name} is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise PickleError(f"{name} is compressed, which torch does not do")
        if entry.file_size > self.size:
            raise PickleError(f"{name} is larger than the file")
        return entry

    def _bytes(self, name: str) -> bytes:
        return self.archive.read(self._entry(name))

    def _storage(self, saved: Any) -> Storage:
        _, kind, key, _, numel, *_ = _persistent(saved)
        entry = self._entry(f"data/{key}")
        dtype = _dtype_of(kind)
        if type(numel) is not int or numel * dtype.itemsize != entry.file_size:
            raise PickleError(f"data/{key} is of another size than its tensors")
        if key not in self.storages:
            self.storages[key] = Storage(self._memory(entry, dtype), dtype)
        return Storage(self.storages[key].memory, dtype)

    def _memory(self, entry: zipfile.ZipInfo, dtype: torch.dtype) -> torch.UntypedStorage:
        if not self.tensors:
            return torch.UntypedStorage(entry.file_size, device="meta")
        numbers = torch.empty(entry.file_size, dtype=torch.uint8)
        with self.archive.open(entry) as file:
            _fill(numbers, file)
            # Its checksum is compared at its end.
            file.read(1)
        memory = numbers.untyped_storage()
        if self.order.decode() != sys.byteorder:
            memory.byteswap(dtype)
        return memory


def _pickle(content: mmap.mmap | BytesIO, size: int, tensors: bool) -> Any:
    """A file of torch before 1.6, or a pickle of something else, of so many bytes."""
    found = unpickle(content, _nothing, _nested)
    if type(found) is not int or found != _TORCH:
        return found
    version = unpickle(content)
    if type(version) is not int or version != _TORCH_VERSION:
        raise PickleError("of a version of torch that is not known")
    unpickle(content)
    storages: dict[str, Storage] = {}
    views: dict[Any, Storage] = {}

    def persistent(saved: Any) -> Any:
        if isinstance(saved, tuple) and saved[:1] == ("module",):
            # A class, and its source.
            return saved[1]
        _, kind, key, _, numel, *view = _persistent(saved)
        dtype = _dtype_of(kind)
        if type(numel) is not int or not 0 <= numel * dtype.itemsize <= size:
            raise PickleError("a tensor that is larger than the file")
        if key not in storages:
            if sum(each.memory.nbytes() for each in storages.values()) + numel * dtype.itemsize > size:
                raise PickleError("tensors that are larger than the file")
            device = "cpu" if tensors else "meta"
            storages[key] = Storage(torch.UntypedStorage(numel * dtype.itemsize, device=device), dtype)
        if view and view[0] is not None:
            view_key, offset, length = view[0]
            start, end = offset * dtype.itemsize, (offset + length) * dtype.itemsize
            if not 0 <= start <= end <= storages[key].memory.nbytes():
                raise PickleError("a view that is larger than its storage")
            return views.setdefault(plain_key(view_key), Storage(storages[key].memory[start:end], dtype))
        return Storage(storages[key].memory, dtype)

    found = unpickle(content, persistent, _nested)
    for key in unpickle(content):
        if key not in storages:
            raise PickleError("numbers without a tensor")
        memory, dtype = storages[key].memory, storages[key].dtype
        numel = int.from_bytes(content.read(8), "little")
        if numel * dtype.itemsize != memory.nbytes():
            raise PickleError("numbers of another size than their tensors")
        if tensors:
            _fill(torch.empty(0, dtype=torch.uint8).set_(memory), content)
        else:
            content.seek(memory.nbytes(), 1)
    return found


def _nested(content: bytes) -> Any:
    return _pickle(BytesIO(content), len(content), tensors=True)


def _nothing(saved: Any) -> Any:
    raise PickleError("a reference to something that is not in the file")


def _persistent(saved: Any) -> tuple[Any, ...]:
    if not isinstance(saved, tuple) or not 5 <= len(saved) <= 6 or saved[0] not in ("storage", b"storage"):
        raise PickleError("a reference that is none to a storage")
    if not isinstance(saved[2], str):
        raise PickleError("a storage without a name")
    return saved


def _dtype_of(kind: Any) -> torch.dtype:
    dtype = STORAGES.get(kind.name) if isinstance(kind, Name) and kind.module.split(".")[0] == "torch" else None
    if dtype is None:
        raise PickleError(f"numbers of a type that is not read, {kind}")
    return dtype


def _fill(numbers: Tensor, file: IO[bytes] | mmap.mmap | BytesIO) -> None:
    """Puts the next bytes of a file into a tensor of bytes."""
    memory: Any = numbers.numpy()
    view, done = memoryview(memory), 0
    while done < len(view):
        read = file.read(min(_CHUNK, len(view) - done))
        if not read:
            raise PickleError("numbers are missing at its end")
        view[done : done + len(read)] = read
        done += len(read)


def _safetensors(path: Path, tensors: bool) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        if tensors:
            return load_file(path)
        with safe_open(path, "pt") as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, LookupError, ValueError) as error:
        raise WeightFileError("cut off or damaged (no whole safetensors file)", AGAIN) from error


def _numpy(file: Any) -> Any:
    """An array in numpy's own format; one of objects holds a pickle."""
    form = np.lib.format
    try:
        version = form.read_magic(file)
        header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, in_columns, dtype = header(file)
    except Exception as error:  # numpy lets through whatever its parser of Python raises
        raise PickleError("the beginning is not numpy's") from error
    if dtype.hasobject:
        return unpickle(file)
    return array(file.read(), dtype, shape, "F" if in_columns else "C")


def _plain(content: Any) -> Any:
    """Content whose networks and dictionaries of other kinds are plain dictionaries, down to those in the first one."""
    content = _as_dict(content)
    if not isinstance(content, dict) or not any(isinstance(value, Record) for value in content.values()):
        return content
    for name, value in content.items():
        content[name] = _as_tuple(_as_dict(value))
    return content


def _as_dict(value: Any) -> Any:
    if not isinstance(value, Record):
        return value
    if isinstance(value.state, Mapping) and isinstance(value.state.get("_modules"), Mapping):
        return dict(_weights_of(value))
    return value.items or value


def _as_tuple(value: Any) -> Any:
    """The values of a tuple whose fields have names, of which a file names only the class."""
    is_plain = isinstance(value, Record) and value.state is None and not value.elements
    return value.arguments if is_plain and len(value.arguments) > 1 else value


def _weights_of(network: Record) -> Iterator[tuple[str, Any]]:
    """The parameters and buffers of a network that was saved whole, by name."""
    found = [("", network)]
    for seen in count():
        if not found:
            return
        if seen > _MOST_MODULES:
            raise PickleError("a network within itself")
        prefix, module = found.pop()
        state = module.state if isinstance(module.state, Mapping) else {}
        transient = state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers", "_modules"):
            own = state.get(kind)
            for name, value in own.items() if isinstance(own, Mapping) else ():
                if kind == "_modules" and isinstance(value, Record):
                    found.append((f"{prefix}{name}.", value))
                elif isinstance(value, Tensor) and name not in transient:
                    yield f"{prefix}{name}", value
