"""Whatever happens to the W&B run, what it watches goes on, and says so."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.errors import AuthenticationError, CommError, UsageError

from exp.tracking import REOPENINGS, wandb_logger
from tests.library.runner import SMALL, run


class Service:
    """Stands for W&B: fails to open in the modes that are given, and to log so many times.

    Args:
        broken: what opening raises, by mode.
        failures: how many calls fail once it is open.
    """

    def __init__(self, broken: dict[str, Exception], failures: int = 0) -> None:
        self.broken, self.failures = broken, failures
        self.opened: list[str] = []
        self.ids: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.closed = 0

    def init(self, mode: str, **options: Any) -> Service:
        self.opened.append(mode)
        self.ids.append(options["id"])
        if mode in self.broken:
            raise self.broken[mode]
        return self

    def log(self, row: dict[str, Any]) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionResetError("Connection lost")
        self.rows.append(row)

    def finish(self) -> None:
        self.log({"finished": True})

    def teardown(self) -> None:
        self.closed += 1
        raise ConnectionResetError("Connection lost")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Service], Service]:
    monkeypatch.setenv("WANDB_API_KEY", "rubbish")
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def replace(service: Service) -> Service:
        monkeypatch.setattr(wandb, "init", service.init)
        monkeypatch.setattr(wandb, "teardown", service.teardown)
        return service

    return replace


FAULTS = {
    "no network": CommError("Run initialization has timed out after 30.0 sec\nPlease try again"),
    "rubbish key": AuthenticationError("API key must have 40+ characters, has 7."),
    "wrong use": UsageError("cannot be used"),
    "full folder": OSError(errno.ENOSPC, "No space left on device"),
    "service that does not start": AssertionError(),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_online_is_offline_and_else_nothing(
    fault: Exception, use: Callable[[Service], Service], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = use(Service({"online": fault}))
    tracker = wandb_logger("auto", tmp_path, "run", "abc", {})
    assert tracker is not None
    assert service.opened == ["online", "offline"]
    tracker.log_metrics({"loss": 1.0}, 3)
    tracker.close()
    assert service.rows == [{"loss": 1.0, "trainer/global_step": 3}, {"finished": True}]
    told = capsys.readouterr().err
    assert told == f"exp: {tracker.trouble}\n"
    assert "the run is kept offline" in told
    service = use(Service({"online": fault, "offline": fault}))
    tracker = wandb_logger("online", tmp_path, "run", "abc", {})
    assert tracker is not None
    assert service.opened == ["online", "offline"]
    tracker.log_metrics({"loss": 1.0}, 3)
    tracker.log_hyperparams({"lr": 1.0})
    tracker.log_image("picture", [str(tmp_path / "missing.png")])
    tracker.experiment.summary["verdict"] = tracker.experiment.config.update({"a": 1})
    tracker.close()
    assert "given up" in tracker.trouble
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_nobody_is_asked_to_log_in(
    use: Callable[[Service], Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = use(Service({}))
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    tracker = wandb_logger("online", tmp_path, "run", "abc", {})
    assert tracker is not None
    assert service.opened == ["offline"]
    assert "not logged in" in tracker.trouble
    assert wandb_logger("disabled", tmp_path, "run", "abc", {}) is None


def test_a_run_that_is_lost_is_opened_anew_a_few_times(use: Callable[[Service], Service], tmp_path: Path) -> None:
    service = use(Service({}, failures=1))
    tracker = wandb_logger("auto", tmp_path, "run", "abc", {})
    assert tracker is not None
    tracker.log_metrics({"loss": 1.0}, 1)
    assert service.opened == ["online", "offline"]
    assert service.rows == [{"loss": 1.0, "trainer/global_step": 1}]
    service.failures = REOPENINGS
    tracker.log_metrics({"loss": 2.0}, 2)
    tracker.log_metrics({"loss": 3.0}, 3)
    assert service.opened == ["online", *["offline"] * REOPENINGS]
    assert "Connection lost: given up" in tracker.trouble
    assert len(service.rows) == 1
    tracker.close()


def test_a_fit_ends_well_without_its_tracker(tmp_path: Path) -> None:
    """And the summary says what it did without."""

    def sabotage() -> None:
        service = Service({})
        service.failures = 1000
        wandb.init, wandb.teardown = service.init, service.teardown

    options = [*SMALL, "--experiment=run", "--trainer.max_epochs=2", "--wandb=offline"]
    ended = run("fit", options, tmp_path, sabotage)
    assert ended.code == 0, ended.output
    assert "Traceback" not in ended.output
    summary = ended.output[ended.output.index("best val/top1") :]
    assert "W&B: Connection lost: given up; metrics.csv has what was logged" in summary


@pytest.mark.parametrize("run_id", ["../../elsewhere", "a/b", "", "x" * 100, ["a"], {"a": 1}, None, "a b"])
def test_a_strange_id_of_a_run_is_replaced(run_id: Any, tmp_path: Path, use: Callable[[Service], Service]) -> None:
    service = use(Service({}))
    for each in (run_id, "abc-1_2"):
        wandb_logger("offline", tmp_path, "one", each, {})
    assert re.fullmatch(r"[0-9a-f]{8}", service.ids[0])
    assert service.ids[1] == "abc-1_2"
