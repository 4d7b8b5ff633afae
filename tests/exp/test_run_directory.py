"""Where a run lives, who holds it, and which run and checkpoint a command goes on with."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from exp.run_directory import (
    LOCK_FILE,
    Run,
    RunError,
    differences,
    essence,
    fingerprint,
    open_run,
)
from exp.run_state import read_state, state_of

OLD: dict[str, Any] = {"model": {"lr": 0.1}, "trainer": {}}
NEW: dict[str, Any] = {"model": {"lr": 0.1, "neck": None}, "trainer": {}}


def resolve(path: Path) -> dict[str, Any] | None:
    """Today every model has a neck, and no momentum."""
    found = yaml.safe_load(path.read_text())
    return None if "momentum" in found["model"] else {**found, "model": {"neck": None, **found["model"]}}


def started(root: Path, config: dict[str, Any]) -> Path:
    run = open_run(root, "run", None, "auto", config)
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    run._lock.close()  # type: ignore[union-attr]
    return run.path


@pytest.mark.parametrize("options", [{"version": None}, {"version": "0"}])
def test_an_option_that_has_come_since_does_not_part_a_run_from_its_command(
    options: dict[str, Any], tmp_path: Path
) -> None:
    path = started(tmp_path, OLD)
    run = open_run(tmp_path, "run", options["version"], "auto", NEW, resolve)
    assert run.path == path
    assert not run.notes
    assert read_state(path)["fingerprint"] == fingerprint(NEW)


@pytest.mark.parametrize("model", [{"lr": 0.2}, {"lr": 0.1, "neck": "fpn"}, {"lr": 0.1, "momentum": 0.9}])
def test_other_values_and_options_that_are_gone_do(model: dict[str, Any], tmp_path: Path) -> None:
    path = started(tmp_path, {**OLD, "model": model})
    run = open_run(tmp_path, "run", None, "auto", NEW, resolve)
    assert run.path != path
    assert "of another config" in run.notes[0]
    assert read_state(path)["fingerprint"] != fingerprint(NEW)


def saved(path: Path, step: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}, "global_step": step, "exp_config": yaml.safe_dump(OLD)}, path)
    return path


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Path], None]]:
    """Has another process hold a run's directory until the test ends."""
    children, pipes = [], []

    def hold(path: Path) -> None:
        told, tell = os.pipe()
        ended, end = os.pipe()
        child = os.fork()
        if not child:
            os.close(end)
            with (path / LOCK_FILE).open("a") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                os.write(tell, b"x")
                os.read(ended, 1)
            os._exit(0)
        os.close(ended)
        assert os.read(told, 1) == b"x"
        children.append(child)
        pipes.append(end)

    yield hold
    for pipe in pipes:
        os.close(pipe)
    for child in children:
        os.waitpid(child, 0)


def test_where_and_how_fast_a_run_runs_is_not_what_it_computes() -> None:
    config = {
        "experiment": "a",
        "model": {"lr": 0.1},
        "trainer": {"max_epochs": 3, "devices": 1},
        "data": {"class_path": "Digits", "init_args": {"num_workers": 2, "batch_size": 8}},
    }
    assert essence(config) == {
        "model": {"lr": 0.1},
        "trainer": {"max_epochs": 3},
        "data": {"class_path": "Digits", "init_args": {"batch_size": 8}},
    }
    assert essence({"data": {"class_path": "Digits"}}) == {"trainer": {}, "data": {"class_path": "Digits"}}
    assert essence({"data": "Digits", "trainer": None}) == {"trainer": {}, "data": "Digits"}
    assert fingerprint(config | {"experiment": "b", "trainer": {"max_epochs": 3, "devices": 2}}) == fingerprint(config)
    assert fingerprint(config | {"trainer": {"max_epochs": 4}}) != fingerprint(config)
    assert len(fingerprint(config)) == 16


def test_the_leaves_in_which_configs_differ() -> None:
    old = {"b": {"x": 1, "y": [1, 2]}, "a": 1, "c": {"z": 0}}
    new = {"b": {"x": 1, "y": [1, 3], "w": 5}, "a": 2, "c": None}
    assert differences(old, new) == ["a: 1 -> 2", "b.w: None -> 5", "b.y: [1, 2] -> [1, 3]", "c: {'z': 0} -> None"]
    assert differences(old, old) == []


def test_versions_are_numbers_and_none_is_taken_twice(tmp_path: Path) -> None:
    assert open_run(tmp_path, "run", None, "never", OLD).path.name == "0"
    for name in ("2", "10", "best"):
        (tmp_path / "run" / name).mkdir()
    (tmp_path / "run" / "11").touch()
    run = open_run(tmp_path, "run", None, "never", OLD)
    assert (run.path.name, run.is_new, run.finished, run.checkpoint) == ("12", True, False, None)
    assert read_state(run.path) == run.facts
    assert run.facts["status"] == "unfinished"


def test_the_newest_unfinished_run_goes_on(tmp_path: Path) -> None:
    first = started(tmp_path, OLD)
    for name in ("2", "10"):
        open_run(tmp_path, "run", name, "auto", OLD).update(status="stopped")
    assert open_run(tmp_path, "run", None, "auto", OLD).path.name == "10"
    assert open_run(tmp_path, "run", "10", "auto", OLD).facts["status"] == "stopped"
    (tmp_path / "run/10/run.json").write_text('{"status": "finished"}')
    assert open_run(tmp_path, "run", None, "auto", OLD).path.name == "2"
    (tmp_path / "run/2/run.json").write_text('{"status": "finished"}')
    assert open_run(tmp_path, "run", None, "auto", OLD).path == first
    assert open_run(tmp_path, "run", None, "never", OLD).path.name == "11"
    # A folder of that name without a word of a run is none.
    (tmp_path / "run/12").mkdir()
    assert open_run(tmp_path, "run", None, "auto", OLD).path.name == "11"


def test_a_named_version_is_begun_continued_or_refused(tmp_path: Path) -> None:
    begun = open_run(tmp_path, "run", "mine", "auto", OLD)
    assert begun.is_new
    again = open_run(tmp_path, "run", "mine", "auto", OLD)
    assert (again.path, again.is_new, again.finished) == (begun.path, False, False)
    with pytest.raises(RunError, match="mine exists: choose another --version, remove it, or allow --resume auto"):
        open_run(tmp_path, "run", "mine", "never", OLD)
    with pytest.raises(RunError, match="mine was started with another config"):
        open_run(tmp_path, "run", "mine", "auto", NEW)
    begun.update(status="finished")
    assert open_run(tmp_path, "run", "mine", "auto", OLD).finished


def test_a_directory_that_another_process_holds(tmp_path: Path, elsewhere: Callable[[Path], None]) -> None:
    path = started(tmp_path, OLD)
    assert state_of(path) == "running"
    Run(path).remove()
    path.mkdir(parents=True)
    (path / "run.json").write_text(f'{{"status": "stopped", "fingerprint": "{fingerprint(OLD)}"}}')
    assert state_of(path) == "stopped"
    elsewhere(path)
    assert state_of(path) == "running"
    for options in ({"version": "0", "resume": "auto"}, {"version": None, "resume": str(path)}):
        with pytest.raises(RunError, match="run/0 is being trained by another process"):
            open_run(tmp_path, "run", config=OLD, **options)  # type: ignore[arg-type]
    run = open_run(tmp_path, "run", None, "auto", OLD)
    assert (run.path.name, run.notes) == ("1", [f"{path} is being trained by another process"])
    assert open_run(tmp_path, "run", None, "never", OLD).notes == []


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ('{"status": "finished"}', "finished"),
        ('{"status": "stopped"}', "stopped"),
        ('{"status": "failed"}', "failed"),
        ('{"status": "unfinished"}', "interrupted"),
        ('["status"]', "interrupted"),
        ('{"status', "interrupted"),
        ("[" * 100_000, "interrupted"),
    ],
    ids=range(7),
)
@pytest.mark.parametrize("locked", [False, True])
def test_how_a_run_stands_that_no_process_holds(state: str, told: str, locked: bool, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(state)
    if locked:
        (tmp_path / LOCK_FILE).touch()
    assert state_of(tmp_path) == told


def test_the_newest_checkpoint_that_can_be_read_is_taken(tmp_path: Path) -> None:
    path = started(tmp_path, OLD)
    assert open_run(tmp_path, "run", "0", "auto", OLD).checkpoint is None
    last, previous = (
        saved(path / "checkpoints" / name, step) for step, name in ((5, "last.ckpt"), (3, "previous.ckpt"))
    )
    (path / "checkpoints/.last.part").touch()
    run = open_run(tmp_path, "run", "0", "auto", OLD)
    assert (run.checkpoint, run.notes) == (last, [])
    assert not (path / "checkpoints/.last.part").exists()
    last.write_bytes(last.read_bytes()[:-40])
    run = open_run(tmp_path, "run", "0", "auto", OLD)
    assert run.checkpoint == previous
    (note,) = run.notes
    assert note.startswith(f"{last} is ")
    assert note.endswith(": trying the checkpoint before it")
    last.unlink()
    run = open_run(tmp_path, "run", "0", "auto", OLD)
    assert (run.checkpoint, run.notes) == (previous, [])


def test_a_checkpoint_begins_a_new_run(tmp_path: Path) -> None:
    file = saved(tmp_path / "some.ckpt", 5)
    run = open_run(tmp_path / "runs", "run", None, str(file), NEW)
    assert (run.path.name, run.is_new, run.checkpoint) == ("0", True, file)
    assert run.notes == [f"starts from {file}"]
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"some.ckpt: the checkpoint is "):
        open_run(tmp_path / "runs", "run", None, str(file), NEW)
    with pytest.raises(RunError, match=r"other.ckpt: no such file, nor a run.*; or give auto or never"):
        open_run(tmp_path / "runs", "run", None, str(tmp_path / "other.ckpt"), NEW)
    assert [path.name for path in (tmp_path / "runs/run").iterdir()] == ["0"]


def test_a_run_without_its_word_is_known_by_its_checkpoint(tmp_path: Path) -> None:
    path = started(tmp_path, OLD)
    saved(path / "checkpoints/previous.ckpt", 3)
    (path / "run.json").write_text("")
    for name in ("run-20260101_100000-old1", "offline-run-20260102_100000-new2", "latest"):
        (path / "wandb" / name).mkdir(parents=True)
    run = open_run(tmp_path, "run", "0", "auto", OLD)
    assert run.facts == {"status": "unfinished", "fingerprint": fingerprint(OLD), "wandb_id": "old1"}
    assert run.notes == [f"{path}/run.json is missing or damaged: written anew; results in it, if any, are lost"]
    with pytest.raises(RunError, match="another config"):
        open_run(tmp_path, "run", "0", "auto", NEW)


def test_another_config_leaves_the_word_of_a_run_as_it_is(tmp_path: Path) -> None:
    path = started(tmp_path, OLD)
    run = open_run(tmp_path, "run", None, str(path), NEW)
    assert (run.path, run.fingerprint) == (path, fingerprint(NEW))
    assert read_state(path)["fingerprint"] == fingerprint(OLD)


def test_a_directory_that_is_removed_or_replaced_is_noticed(tmp_path: Path, elsewhere: Callable[[Path], None]) -> None:
    run = open_run(tmp_path, "run", None, "auto", OLD)
    assert run.still_there()
    assert Run(tmp_path).still_there()
    shutil.rmtree(run.path)
    assert not run.still_there()
    run.take_again()
    assert run.still_there()
    shutil.rmtree(run.path)
    run.path.mkdir()
    elsewhere(run.path)
    assert not run.still_there()
    with pytest.raises(RunError, match="was removed while it was trained, and another process has taken its place"):
        run.take_again()


def test_what_never_began_leaves_nothing(tmp_path: Path) -> None:
    first, second = (open_run(tmp_path, "run", None, "never", OLD) for _ in range(2))
    first.remove()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["1"]
    second.remove()
    assert list(tmp_path.iterdir()) == []
    assert state_of(second.path) == "interrupted"
