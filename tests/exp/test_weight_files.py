"""Files of weights as they are met: read without executing them, or refused by one line."""

from __future__ import annotations

import argparse
import collections
import copyreg
import functools
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exp.pickled import Record
from exp.weight_files import WeightFileError, read


class Settings(dict):
    """Stands for a class of somebody's training code."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def trained() -> dict[str, Any]:
    """What a training script saves besides weights."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    settings = Settings(lr=0.1)
    settings.frozen = True
    return {
        "model": net.state_dict(),
        "network": net,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(output=Path("/runs/1"), lr=np.float32(0.5), device=torch.device("cuda", 1)),
        "space": types.SimpleNamespace(depth=3),
        "array": np.arange(6.0).reshape(2, 3).T,
        "big_endian": np.arange(3, dtype=">f4"),
        "names": np.array(["a", "b"]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "time": np.datetime64("2020-01-01"),
        "best": np.float64(3.0),
        "epoch": np.int64(7),
        "counter": collections.Counter("aab"),
        "lists": collections.defaultdict(list, {"a": [1]}),
        "settings": settings,
        "norm": functools.partial(nn.LayerNorm, eps=1e-6),
        "parameter": nn.Parameter(torch.ones(2)),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "every_second": torch.arange(10.0)[3:8:2],
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "bytes": b"abc",
        "set": {1, 2},
    }


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    weights = expected["model"]
    for name in ("model", "network"):
        assert set(found[name]) == set(weights)
        assert all(torch.equal(found[name][key], value) for key, value in weights.items())
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], expected["optimizer"]["state"][0]["exp_avg"])
    assert found["args"] == argparse.Namespace(output=PurePosixPath("/runs/1"), lr=0.5, device=torch.device("cuda", 1))
    assert found["space"].depth == 3
    for name in ("array", "big_endian"):
        assert torch.equal(found[name], torch.from_numpy(expected[name].astype(expected[name].dtype.newbyteorder("="))))
    assert found["names"] == ["a", "b"]
    assert found["objects"] == [{"a": 1}, None]
    assert isinstance(found["time"], Record)
    for name in ("expanded", "every_second", "bfloat16", "empty", "parameter"):
        assert torch.equal(found[name], expected[name])
    plain = {"best": 3.0, "epoch": 7, "counter": {"a": 2, "b": 1}, "lists": {"a": [1]}, "settings": {"lr": 0.1}}
    plain |= {"size": torch.Size([1, 2]), "dtype": torch.float16, "bytes": b"abc", "set": {1, 2}}
    assert {name: found[name] for name in plain} == plain
    assert type(found["best"]) is float
    assert found["norm"].kind == "functools.partial"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files_of_torch(tmp_path: Path, zipped: bool, protocol: int) -> None:
    expected = trained()
    torch.save(expected, tmp_path / "a", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    check(read(tmp_path / "a"), expected)
    without = read(tmp_path / "a", tensors=False)["model"]
    assert {name: value.shape for name, value in without.items()} == {
        name: value.shape for name, value in expected["model"].items()
    }
    assert all(value.is_meta for value in without.values())


@pytest.mark.parametrize("protocol", range(6))
def test_pickles(tmp_path: Path, protocol: int) -> None:
    expected = trained()
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(expected, protocol))
    check(read(tmp_path / "a.pkl"), expected)


def test_detectron2s_own(tmp_path: Path) -> None:
    """Its model zoo: arrays in a pickle, as Python 2 and 3 and numpy 1 and 2 write them."""
    weights = {"backbone.conv.weight": np.arange(4, dtype=np.float32).reshape(2, 2)}
    zoo = {"model": weights, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    for content in (pickle.dumps(zoo, 2), pickle.dumps(zoo, 2).replace(b"numpy._core.", b"numpy.core.")):
        (tmp_path / "model.pkl").write_bytes(content)
        found = read(tmp_path / "model.pkl")
        assert found["matching_heuristics"] is True
        assert found["model"]["backbone.conv.weight"].tolist() == [[0, 1], [2, 3]]
    # Python 2 wrote bytes as text.
    python2 = b"\x80\x02}U\x01w" + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01bt"
    python2 += b"R(K\x01K\x02\x85cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNI-1\nI-1\nI0\ntbI00\n"
    python2 += b"U\x08" + np.array([1.5, -2], "<f4").tobytes() + b"tbs."
    (tmp_path / "model.pkl").write_bytes(python2)
    assert read(tmp_path / "model.pkl")["w"].tolist() == [1.5, -2]


def test_files_of_numpy_and_safetensors(tmp_path: Path) -> None:
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b/c": np.array(3)}
    np.savez(tmp_path / "plain.npz", **weights)
    np.savez_compressed(tmp_path / "compressed.npz", **weights)
    np.save(tmp_path / "pickled.npy", weights, allow_pickle=True)
    save_file({name: torch.from_numpy(value) for name, value in weights.items()}, tmp_path / "misnamed.pth")
    for path in tmp_path.iterdir():
        found = read(path)
        assert {name: value.tolist() for name, value in found.items()} == {
            name: value.tolist() for name, value in weights.items()
        }, path
        without = read(path, tensors=False)
        assert {name: value.shape for name, value in without.items()} == {
            name: value.shape for name, value in weights.items()
        }


def test_metadata_of_a_state_is_kept(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pth")
    assert read(tmp_path / "a.pth")._metadata == network().state_dict()._metadata


class Calls:
    """Is pickled as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.called = (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


def hostile(mark: str) -> dict[str, Any]:
    """What a stranger's file may call to leave a mark."""
    return {
        "a command": Calls(os.system, f"touch {mark}"),
        "python": Calls(eval, f"open({mark!r}, 'w').close()"),
        "a process": Calls(subprocess.Popen, ["touch", mark]),
        "numpy": Calls(np.save, mark, np.ones(1)),
        "torch": Calls(torch.save, 1, mark),
        "a file": Calls(open, mark, "w"),
        "by attribute": Calls(getattr, os, "system"),
        "a state": Calls(io.FileIO, mark, "w", state={"a": 1}),
        "a path": Calls(Path.touch, Path(mark)),
        "partial": Calls(functools.partial, os.system, state=(os.system, (f"touch {mark}",), {}, None)),
        "mapped": Calls(list, Calls(map, os.system, [f"touch {mark}"])),
        "a factory": Calls(collections.defaultdict, os.system, {"a": 1}),
    }


@pytest.mark.parametrize("kind", hostile(""))
def test_nothing_is_executed(tmp_path: Path, kind: str) -> None:
    mark, file = str(tmp_path / "mark"), tmp_path / "a"
    content = {"model": hostile(mark)[kind], "weight": torch.ones(1)}
    if kind == "by attribute":
        # Modules are not pickled: the name is put in by hand.
        file.write_bytes(
            b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c"
            + bytes([len(mark) + 6])
            + b"touch "
            + mark.encode()
            + b"\x85R."
        )
        with pytest.raises(WeightFileError, match=r"it holds an object, posix\.system"):
            read(file)
    else:
        for zipped in (True, False):
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            assert torch.equal(read(file)["weight"], torch.ones(1))
        for protocol in range(6):
            file.write_bytes(pickle.dumps(content, protocol))
            read(file)
    assert not Path(mark).exists()


def test_no_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}U\x01a" + b"cstranger\nThing\n)\x81}U\x01xK\x01sbs.")
    found = read(tmp_path / "a.pkl")["a"]
    assert (found.kind, found.state) == ("stranger.Thing", {"x": 1})
    assert "stranger" not in sys.modules


def test_no_class_is_changed(tmp_path: Path) -> None:
    """A state may be given to a class instead of an object, and would then change it for the whole process."""
    before = argparse.Namespace.__init__
    for name in (b"argparse\nNamespace", b"collections\nOrderedDict", b"torch._utils\n_rebuild_tensor_v2"):
        (tmp_path / "a.pkl").write_bytes(b"\x80\x02c" + name + b"\nN}U\x08__init__K\x01s\x86b.")
        with pytest.raises(WeightFileError, match=r"cut off or damaged \(attributes of a Name\)"):
            read(tmp_path / "a.pkl")
    assert argparse.Namespace.__init__ is before


def test_no_way_around_the_names(tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 211)
    try:
        for content in (
            b"\x80\x02\x82\xd3U\x04true\x85R.",
            b"\x80\x04\x8c\x05torch\x8c\x24nn.Parameter.__init__.__globals__.os\x93)R.",
            b"\x80\x02K\x01)R.",
            b"\x80\x02U\x03abcQ.",
            b"\x80\x02Pabc\n.",
        ):
            (tmp_path / "a.pkl").write_bytes(content)
            with pytest.raises(WeightFileError):
                read(tmp_path / "a.pkl")
    finally:
        copyreg.remove_extension("os", "system", 211)


def lying(**change: Any) -> Callable[[], Calls]:
    def tensor() -> Calls:
        storage = torch.ones(4)._typed_storage()
        arguments = {"offset": 0, "size": (2, 2), "stride": (2, 1)} | change
        return Calls(torch._utils._rebuild_tensor_v2, storage, *arguments.values(), False, collections.OrderedDict())

    return tensor


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {"size": (2, 3)},
        {"size": (2**40, 2**40), "stride": (0, 0)},
        {"size": (2**34,), "stride": (0,)},
        {"size": (-1, 2)},
        {"stride": (2, 2**61)},
        {"stride": (-1, 1)},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**63},
        {"size": ("2", 2)},
        {"size": (1,) * 65, "stride": (1,) * 65},
    ],
    ids=str,
)
def test_sizes_are_not_believed(tmp_path: Path, change: dict[str, Any], zipped: bool) -> None:
    torch.save({"model": lying()()}, tmp_path / "a", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read(tmp_path / "a")["model"], torch.ones(2, 2))
    torch.save({"model": lying(**change)()}, tmp_path / "a", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightFileError, match=r"of a shape that cannot be|larger than its storage"):
        read(tmp_path / "a")


def test_entries_of_an_archive_are_stored_as_they_are(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    # Stored, but of fewer bytes than it says: the size behind the checksum in the directory at the end.
    content = bytearray((tmp_path / "a.pth").read_bytes())
    place = content.rindex(b"data/0") - len("a/") - 46
    assert content[place : place + 4] == b"PK\x01\x02"
    content[place + 20 : place + 24] = (3996).to_bytes(4, "little")
    (tmp_path / "c.pth").write_bytes(content)
    for name in ("b.pth", "c.pth"):
        with pytest.raises(WeightFileError, match="is compressed, which torch does not do"):
            read(tmp_path / name)


def test_storages_are_not_believed(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for given, other in (
        (b"M\xe8\x03", b"M\xe9\x03"),
        (b"FloatStorage", b"DoubleStorage"),
        (b"FloatStorage", b"QInt8Storage"),
    ):
        with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content.replace(given, other) if name.endswith("data.pkl") else content)
        with pytest.raises(WeightFileError, match=r"of another size than its tensors|of a type that is not read"):
            read(tmp_path / "b.pth")
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pth").read_bytes()
    # As many as no machine has memory for.
    (tmp_path / "a.pth").write_bytes(content.replace(b"M\xe8\x03", b"\x8a\x08" + b"\xff" * 7 + b"\x00", 1))
    with pytest.raises(WeightFileError, match="larger than the file"):
        read(tmp_path / "a.pth")


def met(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Files that people give by mistake: content and what is to be said of them, by name."""
    torch.save({"model": network().state_dict()}, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    torch.save({"model": network().state_dict()}, folder / "old.pth", _use_new_zipfile_serialization=False)
    old = (folder / "old.pth").read_bytes()
    save_file(network().state_dict(), folder / "whole.safetensors")
    safe = (folder / "whole.safetensors").read_bytes()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), folder / "program.pt")
    archive, packed = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "hello")
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(folder / "old.pth", "old.pth")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    return {
        "empty.pth": (b"", "empty"),
        "pointer.pth": (pointer, "`git lfs pull`"),
        "pointer.safetensors": (pointer, "`git lfs pull`"),
        "page.pth": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        "denied.pkl": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
        "answer.pth": (json.dumps({"error": "Not found"}).encode(), "JSON, not weights"),
        "model.safetensors.index.json": (json.dumps({"weight_map": {}}).encode(), "one file"),
        "cut.pth": (whole[: len(whole) // 2], "cut off or damaged"),
        "cut_early.pth": (whole[:3], "cut off or damaged"),
        "cut_old.pth": (old[: len(old) // 2], "cut off or damaged"),
        "cut_old_numbers.pth": (old[:-5], "cut off or damaged"),
        "cut.pkl": (pickle.dumps({"a": np.ones(9)})[:-20], "cut off or damaged"),
        "cut.safetensors": (safe[:-5], "cut off or damaged"),
        "lying.safetensors": ((10**7).to_bytes(8, "little") + safe[8:], "cut off or damaged"),
        "zeros.pth": (bytes(5000), "cut off or damaged"),
        "packed.pth.gz": (gzip.compress(whole), "compressed by gzip"),
        "packed.tar": (packed.getvalue(), "a tar archive"),
        "other.zip": (archive.getvalue(), "without a checkpoint of torch in it (it has readme.txt)"),
        "program.pt": ((folder / "program.pt").read_bytes(), "a program of TorchScript"),
        "network.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "a network of ONNX"),
        "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        "model.ckpt.data-00000-of-00001": (bytes(range(200, 256)), "TensorFlow"),
        "model.ckpt.index": (b"\x01\x02" + bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "TensorFlow"),
        "notes.pth": (b"weights are on the other disk", "text, not a checkpoint"),
        "photo.pth": (b"\xff\xd8\xff\xe0" + bytes(30), "not a checkpoint"),
        "object.pkl": (pickle.dumps(Calls(print, "executed")), "it holds an object, builtins.print, not named tensors"),
    }


def test_what_is_no_file_of_weights_is_told_in_a_line(tmp_path: Path) -> None:
    for name, (content, said) in met(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightFileError) as caught:
            read(tmp_path / name)
        message = str(caught.value)
        assert said in message, name
        assert "\n" not in message, name
        assert message.isprintable(), name
        assert "weights_only" not in message, name


def test_what_is_no_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightFileError, match=r"^no such file$"):
        read(tmp_path / "none.pth")
    with pytest.raises(WeightFileError, match=r"^a folder: give the file of weights in it$"):
        read(tmp_path)
    (tmp_path / "locked.pth").touch()

    def locked(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(WeightFileError, match=r"^not readable \(Permission denied\)$"):
        read(tmp_path / "locked.pth")
