"""Two nodes under SLURM, by the job script that users get: training, preemption, a dying node, an order to stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from exp.checkpoint_io import damage
from tests.library.run_contents import assert_same, contents, table
from tests.library.runner import SMALL, run
from tests.library.slurm_cluster import PATIENCE, Cluster, ClusterError

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "configs/hardware/slurm.sbatch"
NETWORK = [*SMALL, "--experiment=run"]
LAYOUT = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
# An epoch is long, and within it no checkpoint is due: what a job goes on from in its first epoch, a signal has saved.
LONG = ["--data.batch_size=8", "--trainer.max_epochs=2", "--checkpoint.every_n_steps=1000"]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass
class Job:
    """A submitted job script, and the folder in which it runs."""

    cluster: Cluster
    number: int
    folder: Path

    def say(self, name: str) -> str:
        """A field of `scontrol show job`."""
        return self.cluster.job(self.number)[name]

    @property
    def output(self) -> str:
        log = self.folder / f"slurm-{self.number}.out"
        return log.read_text() if log.exists() else ""

    @property
    def last(self) -> Path:
        return self.folder / "runs/run/0/checkpoints/last.ckpt"

    def wait(self, what: str, ready: Callable[[], bool], seconds: float = PATIENCE) -> None:
        try:
            self.cluster.wait(what, ready, seconds)
        except ClusterError as error:
            pytest.fail(f"{error}\n--- the job's output\n{self.output}")

    def train(self) -> None:
        """Waits until a few steps of the first epoch are done."""
        metrics = self.folder / "runs/run/0/metrics.csv"

        def ready() -> bool:
            assert self.say("JobState") not in ENDED, self.output
            return metrics.exists() and len(metrics.read_text().splitlines()) > 4

        self.wait("the first steps", ready)
        assert not self.last.exists(), "the first epoch is over: it must be longer for this test"

    def end(self) -> str:
        """Waits until the job has ended for good, and returns its state."""
        self.wait(f"job {self.number} to end", lambda: self.say("JobState") in ENDED)
        return self.say("JobState")

    def versions(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "runs/run").iterdir())


@pytest.fixture(scope="session")
def submit(cluster: Cluster) -> Callable[..., Job]:
    """Submits the job script as a user does, with one task and no GPU on each node."""

    cluster.environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }

    def sbatch(folder: Path, argv: list[str]) -> Job:
        size = ["--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
        number = cluster.run(
            "sbatch", "--parsable", f"--chdir={folder}", *size, str(SCRIPT), *NETWORK, *LAYOUT, *argv
        ).stdout
        return Job(cluster, int(number), folder)

    return sbatch


@pytest.fixture(scope="session")
def uninterrupted(submit: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two nodes that nothing disturbed."""
    job = submit(tmp_path_factory.mktemp("uninterrupted"), LONG)
    assert job.end() == "COMPLETED", job.output
    return job.folder


def test_two_nodes_train_as_one_process(submit: Callable[..., Job], tmp_path: Path) -> None:
    # Stochastic depth draws on each process for its own samples: without it, both runs compute the same.
    argv = ["--model.network.drop_path_rate=0", "--data.batch_size=128"]
    folders = [tmp_path / name for name in ("nodes", "alone")]
    for folder in folders:
        folder.mkdir()
    job = submit(folders[0], argv)
    places: dict[int, str] = {}

    def both_there() -> bool:
        for rank in (0, 1):
            for pid in job.cluster.processes(job.number, rank):
                environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
                places[rank] = dict(entry.split("=", 1) for entry in environment if "=" in entry)["SLURMD_NODENAME"]
        return len(places) == 2

    job.wait("a process on each node", both_there)
    assert places == {0: "n1", 1: "n2"}
    assert job.end() == "COMPLETED", job.output
    assert job.say("ExitCode") == "0:0"
    assert "2 x cpu" in job.output
    assert job.output.count("run: training") == 1
    assert job.versions() == ["0"]
    alone = run("fit", [*NETWORK, *argv], folders[1])
    assert alone.code == 0, alone.output
    rows = [[row for row in table(folder) if row["val/loss"]] for folder in folders]
    assert len(rows[0]) == len(rows[1]) == 3
    for shared, single in zip(*rows, strict=True):
        for name in single:
            if name.startswith("val/"):
                assert float(shared[name]) == pytest.approx(float(single[name]), abs=1e-4), (name, single["step"])


PREEMPTIONS: dict[str, Callable[[Job], object]] = {
    "every task": lambda job: job.cluster.run("scancel", "--signal=USR1", str(job.number)),
    "one task": lambda job: signal_task(job, 1, signal.SIGUSR1),
    "the batch shell": lambda job: job.cluster.run("scancel", "--signal=USR1", "--batch", str(job.number)),
}


def signal_task(job: Job, rank: int, number: signal.Signals) -> None:
    (pid,) = job.cluster.processes(job.number, rank)
    os.kill(pid, number)


def assert_same_metrics(a: Path, b: Path) -> None:
    """Equal but for the last digit: a checkpoint between two logged steps holds means over the processes."""
    assert len(table(a)) == len(table(b))
    for x, y in zip(table(a), table(b), strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert (x[name] == "") == (y[name] == ""), (x["step"], name)
            if x[name]:
                assert float(y[name]) == pytest.approx(float(x[name]), rel=1e-6), (x["step"], name)


@pytest.mark.parametrize("reached", PREEMPTIONS)
def test_preempted_job_requeues_itself_and_ends_with_the_same_bits(
    reached: str, submit: Callable[..., Job], uninterrupted: Path, tmp_path: Path
) -> None:
    job = submit(tmp_path, LONG)
    job.train()
    PREEMPTIONS[reached](job)
    assert job.end() == "COMPLETED", job.output
    assert job.say("Restarts") == "1"
    assert "Traceback" not in job.output
    assert job.output.count("resuming from runs/run/0/checkpoints/last.ckpt") == 1
    assert job.versions() == ["0"]
    for name in ("last", "best"):
        assert_same(contents(uninterrupted, name), contents(tmp_path, name), name)
    assert_same_metrics(uninterrupted, tmp_path)


def test_signal_during_start_is_kept(submit: Callable[..., Job], uninterrupted: Path, tmp_path: Path) -> None:
    """A job that is preempted again before it trains: torch alone takes seconds to import."""
    job = submit(tmp_path, LONG)

    def importing() -> bool:
        found = job.cluster.processes(job.number, 0), job.cluster.processes(job.number, 1)
        return all(pids and "torch/lib" in Path(f"/proc/{pids[0]}/maps").read_text() for pids in found)

    job.wait("the tasks to start", importing)
    assert not (tmp_path / "runs").exists()
    PREEMPTIONS["every task"](job)
    assert job.end() == "COMPLETED", job.output
    assert job.say("Restarts") == "1"
    assert "resuming from runs/run/0/checkpoints/last.ckpt" in job.output
    assert_same(contents(uninterrupted), contents(tmp_path))


def test_dying_process_ends_the_job(submit: Callable[..., Job], tmp_path: Path) -> None:
    job = submit(tmp_path, ["--data.batch_size=8", "--trainer.max_epochs=1000", "--checkpoint.every_n_steps=1000"])
    job.train()
    signal_task(job, 1, signal.SIGKILL)
    assert job.end() == "FAILED", job.output
    code, _ = job.say("ExitCode").split(":")
    assert int(code) not in (0, 75)
    assert not any(job.cluster.processes(job.number, rank) for rank in (0, 1))


ORDERS = {
    # options of scancel: the state and the exit code of the job
    "tasks": (["--signal=TERM"], "FAILED", "75:0"),
    "batch shell": (["--signal=TERM", "--batch"], "FAILED", "75:0"),
    "cancel": ([], "CANCELLED", None),
}


@pytest.mark.parametrize("order", ORDERS)
def test_order_to_stop_saves_and_does_not_requeue(
    order: str, submit: Callable[..., Job], uninterrupted: Path, tmp_path: Path
) -> None:
    options, state, code = ORDERS[order]
    job = submit(tmp_path, LONG)
    job.train()
    job.cluster.run("scancel", *options, str(job.number))
    assert job.end() == state, job.output
    assert job.say("Restarts") == "0"
    assert code is None or job.say("ExitCode") == code
    assert "exp: stopped by SIGTERM" in job.output
    assert "Traceback" not in job.output
    assert damage(job.last) is None
    if order == "tasks":
        again = submit(tmp_path, LONG)
        assert again.end() == "COMPLETED", again.output
        assert "resuming from runs/run/0/checkpoints/last.ckpt" in again.output
        assert again.versions() == ["0"]
        assert_same(contents(uninterrupted), contents(tmp_path))


MISTAKES = {
    "tasks not spread": (["srun", "--nodes=2", "--ntasks=2"], LAYOUT, "--ntasks-per-node"),
    "more devices than tasks": (
        ["srun", "--nodes=2", "--ntasks-per-node=1"],
        [*LAYOUT, "--trainer.devices=2"],
        "2 nodes x 2 devices, but SLURM started 2 tasks",
    ),
    "no srun": (["salloc", "--nodes=2", "--ntasks-per-node=1"], LAYOUT, "start it by srun"),
    "fewer tasks than nodes": (
        ["srun", "--nodes=1", "--ntasks-per-node=1"],
        LAYOUT,
        "2 nodes x 1 devices, but SLURM started 1 tasks: use srun --nodes=2 --ntasks-per-node=1",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_layout_is_refused(mistake: str, submit: Callable[..., Job], cluster: Cluster, tmp_path: Path) -> None:
    start, layout, said = MISTAKES[mistake]
    # Lightning takes a job named after a shell for an interactive one; salloc would name it so.
    argv = [*start, "--job-name=exp", f"--chdir={tmp_path}", "python", "-m", "exp", "fit", *NETWORK, *layout]
    ended = cluster.run(*argv, check=False)
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "runs").exists()
