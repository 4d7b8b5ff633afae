"""Whenever a command is asked to stop, it says so in one line, ends with a code of its own, and leaves nothing half."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch import Trainer
from PIL import Image

import exp.profile
import exp.signals
from callbacks import StepSeed
from callbacks.liveness import Liveness
from datamodules import Digits
from exp.errors import exit_code
from exp.processes import MAIN, is_started_by_main, join_main
from exp.signals import ECHO, Stopped, asked, listening
from lightning_modules import Classification
from tests.library.run_contents import after, assert_same, contents
from tests.library.runner import SMALL, Ended, run

SHORT = [*SMALL, "--trainer.max_epochs=2", "--test=true", "--experiment=run"]
IMAGES = ["0.png", "1.png"]


def get(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def last_line(ended: Ended) -> str:
    assert "Traceback" not in ended.output, ended.output
    told = [line for line in ended.output.splitlines() if line.startswith("exp: ") and "exp: heard" not in line]
    assert len(told) == 1, ended.output
    return told[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    ended = run("fit", SHORT, folder)
    assert ended.code == 0, ended.output
    for name in IMAGES:
        Image.fromarray(np.full((8, 8), 80, np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("moment", "told"),
    {
        "before there is a run": (after(Digits, "setup", 1, get(signal.SIGINT)), "Ctrl-C; the same command goes on"),
        "trial": (after(Classification, "validation_step", 1, get(signal.SIGINT)), "Ctrl-C at step 0; the same"),
        "training": (after(StepSeed, "on_train_batch_start", 6, get(signal.SIGINT)), "Ctrl-C at step 6; the same"),
        "validation": (
            after(Classification, "validation_step", 4, get(signal.SIGINT)),
            "Ctrl-C at step 9; the same command goes on from the last checkpoint",
        ),
        "before the test": (after(Trainer, "test", 1, get(signal.SIGINT)), "Ctrl-C; the same command goes on"),
        "test": (after(Classification, "test_step", 1, get(signal.SIGTERM)), "SIGTERM; the same command goes on"),
    }.values(),
)
def test_a_fit_that_is_stopped_goes_on(moment: Callable[[], None], told: str, tmp_path: Path, trained: Path) -> None:
    stopped = run("fit", SHORT, tmp_path, moment)
    assert stopped.code == 75, stopped.output
    assert last_line(stopped).startswith(f"exp: stopped by {told}")
    ended = run("fit", SHORT, tmp_path)
    assert ended.code == 0, ended.output
    assert [path.name for path in (tmp_path / "runs/run").iterdir()] == ["0"]
    assert_same(contents(trained), contents(tmp_path))
    results = [json.loads((folder / "runs/run/0/run.json").read_text())["test"] for folder in (trained, tmp_path)]
    assert results[0] == results[1]


def test_a_second_ctrl_c_ends_a_training_at_once(tmp_path: Path) -> None:
    def hang() -> None:
        exp.signals.TOLD = 0.1
        for _ in range(2):
            get(signal.SIGINT)()
            time.sleep(2 * ECHO)
        time.sleep(60)

    started = time.monotonic()
    ended = run("fit", SHORT, tmp_path, after(StepSeed, "on_train_batch_start", 4, hang))
    assert ended.code == 130
    assert "exp: heard Ctrl-C: saves and stops as soon as it can; a second Ctrl-C ends it at once" in ended.output
    assert last_line(ended) == "exp: ended at once by a second Ctrl-C; the same command goes on from what was saved"
    assert time.monotonic() - started < 50


@pytest.mark.parametrize(
    ("command", "argv", "step", "number", "told", "unwritten"),
    [
        ("validate", [], "validation_step", signal.SIGHUP, "SIGHUP", "validate/metrics.json"),
        ("test", [], "test_step", signal.SIGINT, "Ctrl-C", "test/metrics.json"),
        ("predict", IMAGES, "predict_step", signal.SIGTERM, "SIGTERM", "predict/predictions.csv"),
        ("predict", IMAGES, "predict_step", signal.SIGINT, "Ctrl-C", "predict/predictions.csv"),
    ],
)
def test_other_commands_end_where_they_are(
    command: str, argv: list[str], step: str, number: signal.Signals, told: str, unwritten: str, trained: Path
) -> None:
    checkpoint = "--ckpt_path=runs/run/0/checkpoints/last.ckpt"
    stopped = run(command, [checkpoint, *argv], trained, after(Classification, step, 1, get(number)))
    assert stopped.code == 128 + number, stopped.output
    assert last_line(stopped) == f"exp: stopped by {told}"
    assert not (trained / "runs/run/0" / unwritten).exists()


def test_a_profile_ends_where_it_is(tmp_path: Path) -> None:
    def sabotage() -> None:
        exp.profile.profile = lambda *args: get(signal.SIGINT)()  # type: ignore[assignment]

    stopped = run("profile", SHORT, tmp_path, sabotage)
    assert stopped.code == 130, stopped.output
    assert last_line(stopped) == "exp: stopped by Ctrl-C"


def test_who_does_not_hear_is_ended(tmp_path: Path) -> None:
    """A stop that something has swallowed is one all the same."""

    def swallow() -> None:
        try:
            get(signal.SIGTERM)()
            time.sleep(1)
        except Stopped:
            time.sleep(60)

    started = time.monotonic()
    ended = run("profile", SHORT, tmp_path, after(Digits, "example", 1, swallow))
    assert ended.code == 143, ended.output
    assert last_line(ended) == "exp: stopped by SIGTERM"
    assert time.monotonic() - started < 50


def test_signals_are_given_back_and_ignored_ones_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    others = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with listening(again=True):
            signal.raise_signal(signal.SIGHUP)
            assert asked() is None
        assert {number: signal.getsignal(number) for number in others} == others
        with pytest.raises(Stopped, match="SIGTERM"), listening(again=True):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is others[signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGINT, others[signal.SIGINT])


def test_a_process_whose_main_one_has_ended_before_it_started_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MAIN, raising=False)
    join_main()
    assert os.environ[MAIN] == str(os.getpid())
    assert not is_started_by_main()
    monkeypatch.setenv("LOCAL_RANK", "1")
    codes = []
    for main in (os.getpid(), os.getppid()):
        pid = os.fork()
        if not pid:
            os.environ[MAIN] = str(main)
            join_main()
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert codes == [0, 1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("[gloo/unbound_buffer.cc:81] Timed out waiting 600000ms for recv operation"),
            "exp: another process did not come to where the others waited within 10 minutes; the job ends\n",
        ),
        (OSError(28, "No space left on device", "a.csv"), "exp: a.csv: no space left on device; free space there, "),
    ],
)
def test_what_ends_a_job_is_said_in_one_line(error: Exception, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = SimpleNamespace(
        world_size=2, callbacks=[Liveness(10, lambda: False, print)], strategy=SimpleNamespace(launcher=None)
    )
    with exit_code(SimpleNamespace(trainer=trainer)) as outcome:  # type: ignore[arg-type]
        raise error
    assert outcome.code == 1
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert len(said.splitlines()) == 1


def test_a_stop_that_was_wrapped_is_a_stop() -> None:
    def wrapped() -> None:
        try:
            raise Stopped(signal.SIGTERM)
        except Stopped as stop:
            raise RuntimeError("the loader failed") from stop

    with pytest.raises(Stopped, match="SIGTERM"), exit_code(SimpleNamespace(trainer=None)):  # type: ignore[arg-type]
        wrapped()
