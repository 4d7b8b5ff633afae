"""The same config on two processes: the same training, and no job that hangs when one of them dies."""

from __future__ import annotations

import csv
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from models.self_supervised import MoCo
from tests.library.runner import PATIENCE, SMALL, fork, run, write_to

ROOT = Path(__file__).parents[2]
CONFIG = [*SMALL, "--model.network.drop_path_rate=0", "--experiment=run"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def start(folder: Path, argv: list[str]) -> subprocess.Popen[str]:
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "exp", "fit", *argv]
    log = (folder / "log.txt").open("w")
    options = {"cwd": folder, "env": environment, "stdout": log, "stderr": log, "start_new_session": True}
    return subprocess.Popen(command, text=True, **options)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Waits until the table has a row of this step."""
    table = folder / "runs/run/0/metrics.csv"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if table.exists():
            with table.open() as file:
                if any(int(row["step"]) >= step for row in csv.DictReader(file)):
                    return
        time.sleep(0.05)
    raise AssertionError(f"step {step} not reached:\n{(folder / 'log.txt').read_text()}")


def metrics(folder: Path) -> dict[tuple[str, str], float]:
    with (folder / "runs/run/0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        (row["step"], name): float(value)
        for row in rows
        for name, value in row.items()
        if value and name not in ("step", "epoch", "train/images_per_second")
    }


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], float]:
    folder = tmp_path_factory.mktemp("one")
    ended = run("fit", CONFIG, folder)
    assert ended.code == 0, ended.output
    return metrics(folder)


def test_two_processes_train_like_one(one_process: dict[tuple[str, str], float], tmp_path: Path) -> None:
    process = start(tmp_path, [*CONFIG, *TWO])
    assert process.wait(120) == 0, (tmp_path / "log.txt").read_text()
    two = metrics(tmp_path)
    assert two.keys() == one_process.keys()
    assert [p.name for p in (tmp_path / "runs/run").iterdir()] == ["0"]
    # 180 validation images in batches of 128: the last batch is incomplete, and counted once.
    for key, value in one_process.items():
        assert two[key] == pytest.approx(value, abs=1e-4), key


def test_signal_stops_all_and_one_process_goes_on(one_process: dict[tuple[str, str], float], tmp_path: Path) -> None:
    process = start(tmp_path, [*CONFIG, *TWO])
    wait_for_step(tmp_path, 5, process)
    # As a terminal does, to all processes of the job.
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 75, (tmp_path / "log.txt").read_text()
    told = (tmp_path / "log.txt").read_text()
    assert told.count("exp: ") == told.count("exp: stopped by Ctrl-C at step ") == 1, told
    ended = run("fit", CONFIG, tmp_path)
    assert ended.code == 0, ended.output
    assert "resuming from" in ended.output
    resumed = metrics(tmp_path)
    assert resumed.keys() == one_process.keys()
    for key, value in one_process.items():
        assert resumed[key] == pytest.approx(value, abs=1e-4), key


def second_process(process: subprocess.Popen[str]) -> int:
    """The id of the process of rank 1."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children.split()}
    (worker,) = [pid for pid, command in commands.items() if "exp" in command and "fit" in command]
    return int(worker)


def test_a_process_that_is_stopped_for_good_ends_the_job(tmp_path: Path) -> None:
    process = start(tmp_path, [*CONFIG, *TWO, "--trainer.max_epochs=1000", "--timeout=0.15"])
    wait_for_step(tmp_path, 5, process)
    worker = second_process(process)
    os.kill(worker, signal.SIGSTOP)
    assert process.wait(60) == 1
    told = (tmp_path / "log.txt").read_text()
    assert "exp: rank 1 gave no sign of life for 9 seconds (--timeout): the job ends; the same command" in told
    assert "Traceback" not in told
    deadline = time.monotonic() + 20
    while "State:\tT" in (state := status(worker)):
        assert time.monotonic() < deadline, state


def status(pid: int) -> str:
    """What the kernel says of a process; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return ""


def test_a_process_that_dies_ends_the_job(tmp_path: Path) -> None:
    process = start(tmp_path, [*CONFIG, *TWO, "--trainer.max_epochs=1000"])
    wait_for_step(tmp_path, 5, process)
    os.kill(second_process(process), signal.SIGKILL)
    code = process.wait(60)
    assert code not in (0, 75)
    assert "rank 1 was killed by signal 9" in (tmp_path / "log.txt").read_text()


def rank_of_moco(rank: int, port: int, folder: Path) -> None:
    """Makes this process one of two that a launcher has started, which keeps what MoCo shuffles and queues."""
    os.chdir(folder)
    write_to(os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT))
    launched = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launched.items()})
    order, advance, orders = MoCo.order, MoCo.advance, []

    def keep_order(self: MoCo, count: int) -> torch.Tensor:
        orders.append(order(self, count))
        return orders[-1]

    def keep_queue(self: MoCo) -> None:
        advance(self)
        kept = {"orders": torch.stack(orders), "keys": self.queue.keys, "pointer": self.queue.pointer}
        torch.save(kept, folder / f"{rank}.pt")

    MoCo.order, MoCo.advance = keep_order, keep_queue  # type: ignore[method-assign]


def test_moco_shuffles_and_queues_alike_on_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = ["fit", f"--config={ROOT}/configs/self_supervised/moco_digits.yaml", *TWO, "--wandb=disabled"]
    argv += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=1"]
    argv += ["--model.network.init_args.split_norms=1", "--model.schedule=null", "--test=false", "--experiment=run"]
    started = [fork(argv, lambda rank=rank: rank_of_moco(rank, port, tmp_path)) for rank in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
    assert codes == [0, 0], "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in ("orders", "keys", "pointer"))
    # Four batches of 128 from both processes, each shuffled in another way.
    assert first["pointer"].item() == 512
    assert [sorted(order.tolist()) for order in first["orders"]] == [list(range(128))] * 4
    assert len({tuple(order.tolist()) for order in first["orders"]}) == 4
    torch.testing.assert_close(first["keys"].norm(dim=0), torch.ones(1024))
    losses = {step: value for (step, name), value in metrics(tmp_path).items() if name == "train/loss"}
    assert len(losses) == 4
    assert all(map(math.isfinite, losses.values()))
