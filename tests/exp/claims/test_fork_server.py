"""Fits as copies of a process that has all imported: as good as fresh ones, and gone when they should be."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exp.claims.executors import shares
from exp.claims.fork_server import ForkServer, ServerLost, Start
from tests.library.runner import PATIENCE, SMALL


@pytest.fixture
def server() -> Iterator[ForkServer]:
    made = ForkServer(tracked=False)
    yield made
    made.close()


def ends(server: ForkServer) -> int:
    """The exit code of the one fit that runs."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if codes := server.ended():
            ((_, code),) = codes
            return code
        time.sleep(0.02)
    raise TimeoutError


def test_a_fit_has_its_own_log_environment_exit_code_and_cores(server: ForkServer, tmp_path: Path) -> None:
    log, cores = tmp_path / "log", [min(os.sched_getaffinity(0))]
    # What the config cannot know shows where its home is looked for.
    environment = os.environ | {"HOME": "/nowhere/at/all"}
    log.write_text("before\n")
    server.start(Start([*SMALL, "--weights=~/a.ckpt", f"--runs={tmp_path}"], str(log), environment, 1, cores))
    assert ends(server) == 2
    assert log.read_text().startswith("before\nexp: ")
    assert "/nowhere/at/all/a.ckpt" in log.read_text()
    assert os.environ.get("HOME") != "/nowhere/at/all"
    server.start(Start(["--no_such_key=1"], str(log), dict(os.environ)))
    assert ends(server) == 2


@pytest.mark.parametrize("lost", [False, True], ids=["fit", "server"])
def test_what_is_killed(server: ForkServer, lost: bool, tmp_path: Path) -> None:
    endless = [*SMALL, "--trainer.max_epochs=100000", f"--runs={tmp_path}", "--experiment=a"]
    pid = server.start(Start(endless, str(tmp_path / "log"), os.environ | {"OMP_NUM_THREADS": "1"}, 1, [0]))
    end = time.monotonic() + PATIENCE
    while not list(tmp_path.glob("a/*/checkpoints/last.ckpt")) and time.monotonic() < end:
        time.sleep(0.05)
    assert os.sched_getaffinity(pid) == {0}
    assert os.getsid(pid) == pid
    os.kill(server._pid if lost else pid, signal.SIGKILL)
    if not lost:
        assert ends(server) == -signal.SIGKILL
        return
    with pytest.raises(ServerLost):
        ends(server)
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_jobs_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(2, 9)))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    three = shares(3)
    assert [share.threads for share in three] == [2, 2, 2]
    used = [core for share in three for core in share.cores or []]
    assert len(set(used)) == len(used) == 6
    assert set(used) <= set(range(2, 9))
    # One job has all, and more jobs than cores share them as the system sees fit.
    assert [(share.threads, share.cores) for share in shares(1)] == [(7, None)]
    assert {(share.threads, share.cores is None) for share in shares(8)} == {(1, True)}


@pytest.mark.parametrize(("gpus", "seen"), [(1, [None, None]), (4, ["0,2", "1,3"]), (2, ["0", "1"])])
def test_jobs_have_gpus_of_their_own(gpus: int, seen: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert [share.gpus for share in shares(2)] == seen
    if gpus == 2:
        assert [share.gpus for share in shares(3)] == ["0", "1", "0"]
