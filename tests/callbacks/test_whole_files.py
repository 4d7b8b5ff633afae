"""Files that are there whole, or as they were."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest

from callbacks.whole_files import note, whole, write_whole


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new/file.png"
    with whole(path) as partial:
        assert partial.suffix == ".png"
        partial.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert [each.name for each in path.parent.iterdir()] == ["file.png"]


def test_what_goes_wrong_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_whole(path, "old")

    def fail() -> None:
        with whole(path) as partial:
            partial.write_text("ne")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file.txt"]


def test_a_log_that_cannot_be_written_is_not_left_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "errors.log"
    assert note(log, "one\n")
    assert note(log, "two\n")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Full(io.StringIO):
        write = full  # type: ignore[assignment]

    def opened(path: Path, mode: str) -> Full:
        path.touch()
        return Full()

    monkeypatch.setattr(Path, "open", opened)
    assert not note(log, "three\n")
    assert not note(tmp_path / "other.log", "one\n")
    assert log.stat().st_size == len("one\ntwo\n")
    assert not (tmp_path / "other.log").exists()
