"""What a run writes down of itself: whole after kills, damage and removal, and never beside its directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from callbacks import StepSeed
from exp.checkpoint_io import AtomicCheckpointIO
from exp.run_state import state_of
from tests.library.run_contents import after, table
from tests.library.runner import die
from tests.library.short_run import RUN, fit


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    ended = fit(folder)
    assert ended.code == 0, ended.output
    return folder


def test_a_run_that_died_after_its_last_step_only_has_to_say_how_it_ended(whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run / "runs", tmp_path / "runs")
    state = json.loads((tmp_path / RUN / "run.json").read_text())
    (tmp_path / RUN / "run.json").write_text(json.dumps(state | {"status": "unfinished"}))
    ended = fit(tmp_path)
    assert ended.code == 0, ended.output
    assert re.search(r"^best val/top1 0\.\d+ at step \d+$", ended.output, re.MULTILINE)
    assert json.loads((tmp_path / RUN / "run.json").read_text())["best"] == state["best"]
    assert table(tmp_path) == table(whole_run)


def dying_after_saving(call: int) -> Callable[[], None]:
    """A sabotage: dies as soon as a checkpoint has its name, before Lightning logs the step that it is of."""

    def sabotage() -> None:
        save, count = AtomicCheckpointIO.save_checkpoint, [0]

        def and_die(*args: object, **kwargs: object) -> None:
            save(*args, **kwargs)  # type: ignore[arg-type]
            count[0] += 1
            if count[0] == call:
                die()

        AtomicCheckpointIO.save_checkpoint = and_die  # type: ignore[method-assign]

    return sabotage


def test_the_row_of_a_checkpoints_step_is_not_lost(whole_run: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, sabotage=dying_after_saving(3)).code == -signal.SIGKILL
    assert state_of(tmp_path / RUN) == "interrupted"
    ended = fit(tmp_path)
    assert ended.code == 0, ended.output
    assert table(tmp_path) == table(whole_run)


def damaged_table(path: Path) -> None:
    with (path / "metrics.csv").open("ab") as file:
        file.write(b"\xff\x00" * 40)


def no_header(path: Path) -> None:
    file = path / "metrics.csv"
    file.write_bytes(file.read_bytes().split(b"\n", 1)[1])


def torn(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(content) and None


DAMAGE = {
    "rubbish behind the table": (damaged_table, "what cannot be read is left out (line 4)"),
    "no header": (no_header, "has no readable header"),
    "torn run.json": (torn("run.json", b'{"status": "unfin'), "run.json is missing or damaged"),
    "empty run.json": (torn("run.json", b""), "run.json is missing or damaged"),
    "no object": (torn("run.json", b"[1]"), "run.json is missing or damaged"),
    "torn config.yaml": (torn("config.yaml", b"model: {\x00\x00"), ""),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    assert fit(folder, sabotage=after(StepSeed, "on_train_batch_start", 6)).code == -signal.SIGKILL
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_rebuilt(kind: str, interrupted: Path, whole_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(interrupted, tmp_path / "copy")
    harm, line = DAMAGE[kind]
    harm(folder / RUN)
    ended = fit(folder)
    assert ended.code == 0, ended.output
    assert "resuming from runs/run/0/checkpoints/last.ckpt" in " ".join(ended.output.split())
    assert line in " ".join(ended.output.split())
    for name in ("config.yaml",):
        assert (folder / RUN / name).read_text() == (whole_run / RUN / name).read_text()
    facts, expected = (json.loads((path / RUN / "run.json").read_text()) for path in (folder, whole_run))
    assert facts["fingerprint"] == expected["fingerprint"]
    assert facts["status"] == "finished"
    if kind == "no header":
        assert table(folder) == [row for row in table(whole_run) if int(row["step"]) >= 4]
    else:
        assert table(folder) == table(whole_run)
    assert (folder / RUN / "metrics.damaged.csv").exists() == ("table" in kind or "header" in kind)


def test_both_files_torn_at_once(interrupted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(interrupted, tmp_path / "copy")
    for name in ("run.json", "config.yaml"):
        (folder / RUN / name).write_bytes(b"\x00" * 9)
    ended = fit(folder)
    assert ended.code == 0, ended.output
    assert "resuming from" in ended.output


def test_a_directory_that_is_removed_is_made_again(whole_run: Path, tmp_path: Path) -> None:
    def remove() -> None:
        shutil.rmtree(tmp_path / RUN)

    ended = fit(tmp_path, "--trainer.max_epochs=2", sabotage=after(StepSeed, "on_train_batch_start", 12, remove))
    assert ended.code == 0, ended.output
    assert "runs/run/0 was removed while it was trained" in ended.output
    found = {path.name for path in (tmp_path / RUN).rglob("*")}
    assert {"config.yaml", "run.json", "metrics.csv", "last.ckpt", "best.ckpt", "learning_curve.png"} <= found
    facts = json.loads((tmp_path / RUN / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["total_steps"] == 18
    assert [int(row["step"]) for row in table(tmp_path)] == [1, 3, 5, 7, 8, 9, 11, 13, 15, 17]


def test_checkpoints_that_are_removed_at_the_end_are_missed(tmp_path: Path) -> None:
    def remove() -> None:
        shutil.rmtree(tmp_path / RUN / "checkpoints")

    # The summary comes last.
    ended = fit(tmp_path, sabotage=after_name("print_summary", remove))
    assert ended.code == 1, ended.output
    assert "last.ckpt, runs/run/0/checkpoints/best.ckpt: removed since it was written" in ended.output
    assert "Traceback" not in ended.output


def after_name(name: str, act: Callable[[], None]) -> Callable[[], None]:
    def sabotage() -> None:
        import exp.fit

        original = getattr(exp.fit, name)

        def acting(*args: object) -> None:
            act()
            original(*args)

        setattr(exp.fit, name, acting)

    return sabotage


def test_how_a_run_stands_is_told_by_its_process(tmp_path: Path) -> None:
    seen: list[str] = []

    def look() -> None:
        seen.append(state_of(Path(RUN)))
        pid = os.fork()
        if not pid:
            os._exit(0 if state_of(Path(RUN)) == "running" else 1)
        seen.append("running" if os.waitpid(pid, 0)[1] == 0 else "wrong")
        Path("seen").write_text(" ".join(seen))
        os.kill(os.getpid(), signal.SIGTERM)

    stopped = fit(tmp_path, sabotage=after(StepSeed, "on_train_batch_start", 3, look))
    assert stopped.code == 75, stopped.output
    assert (tmp_path / "seen").read_text() == "running running"
    assert state_of(tmp_path / RUN) == "stopped"
    assert json.loads((tmp_path / RUN / "run.json").read_text())["step"] == 3
    failed = fit(tmp_path, "--resume=never", "--model.optimizer.lr=1e30")
    assert failed.code == 1
    assert state_of(tmp_path / "runs/run/1") == "diverged"


@pytest.mark.parametrize(
    "argv",
    [
        ["--weights=nowhere.ckpt"],
        ["--model.network.num_classes=7"],
    ],
)
def test_a_refused_command_leaves_no_directory(argv: list[str], tmp_path: Path) -> None:
    refused = fit(tmp_path, *argv)
    assert refused.code in (1, 2)
    assert "Traceback" not in refused.output
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file() or path.name == "0"]


def test_nothing_lies_outside_of_the_run(tmp_path: Path) -> None:
    callbacks = [
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.monitor=val/top1",
        "--trainer.callbacks.save_last=true",
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.every_n_train_steps=3",
        "--trainer.callbacks+=LearningRateMonitor",
        "--trainer.profiler=SimpleProfiler",
        "--trainer.profiler.filename=times",
    ]
    ended = fit(tmp_path, *callbacks)
    assert ended.code == 0, ended.output
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "output.txt"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"run"}
    inside = {path.name for path in (tmp_path / RUN / "callbacks/checkpoints").iterdir()}
    assert len(inside) >= 2
    assert {path.stem for path in (tmp_path / RUN / "checkpoints").iterdir()} == {"last", "previous", "best"}
    assert [path.name for path in (tmp_path / RUN).glob("*times*")]
