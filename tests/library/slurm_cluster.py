"""A SLURM cluster of two nodes on this machine: its own munged, slurmctld and two slurmd, in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = {"n1": 17101, "n2": 17102}
CONTROL_PORT = 17100
PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel")
HOSTS = Path("/etc/hosts")
MARK = "# added by tests/slurm"
# Seconds for what takes a few, or half a minute, on a machine that has nothing else to do.
PATIENCE = 300.0

CONFIG = """
ClusterName=exp
SlurmctldHost=localhost
SlurmctldPort={control_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired: two minutes, unless told otherwise.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
JobRequeue=1
KillWait={kill_wait}
MailProg=/bin/true
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


class ClusterError(RuntimeError):
    """The cluster could not be started; the message says what is missing."""


def missing() -> str | None:
    """What keeps this machine from running the cluster, and how to mend it; None if nothing does."""
    absent = [program for program in PROGRAMS if _program(program) is None]
    if absent:
        return (
            f"the SLURM tests need {', '.join(absent)}: install Debian's packages with "
            "`apt-get update && apt-get install -y slurm-wlm munge`"
        )
    if os.geteuid() != 0:
        return "the SLURM tests start slurmd, which must run as root: run them as root, e.g. in a container"
    return None


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """Starts the daemons, and speaks to them.

    Args:
        folder: an empty folder, not below one that only its owner may enter.
        kill_wait: seconds from SLURM's SIGTERM to its SIGKILL.

    Raises:
        ClusterError: a program is missing, the user is not root, or a daemon did not come up.
    """

    def __init__(self, folder: Path, kill_wait: int = 30) -> None:
        if problem := missing():
            raise ClusterError(problem)
        self.folder = folder
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "MASTER_"))
        } | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts_added = False
        nodes = "\n".join(
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={os.cpu_count()} State=UNKNOWN"
            for name, port in NODES.items()
        )
        for name in ("munge", "state", *(f"spool.{name}" for name in NODES)):
            (folder / name).mkdir(mode=0o755)
        (folder / "slurm.conf").write_text(
            CONFIG.format(
                folder=folder, kill_wait=kill_wait, nodes=nodes, names=",".join(NODES), control_port=CONTROL_PORT
            )
        )

    def start(self) -> None:
        """Brings the cluster up and waits until both nodes are idle."""
        munge = self.folder / "munge"
        self.run("mungekey", "--create", f"--keyfile={munge}/key")
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._start("munged", "--foreground", "--force", *(f"--{flag}={munge / name}" for flag, name in files.items()))
        self.wait("munged's socket", (munge / "socket").exists)
        self._add_hosts()
        self._start("slurmctld", "-D", "-f", f"{self.folder}/slurm.conf")
        for name in NODES:
            self._start("slurmd", "-D", "-N", name, "-f", f"{self.folder}/slurm.conf")
        self.wait("both nodes to be idle", self._idle)

    def stop(self) -> None:
        """Ends all jobs and daemons, and gives the hosts file back as it was."""
        try:
            if "slurmctld" in self._daemons:
                self._end_jobs()
        finally:
            for daemon in reversed(self._daemons.values()):
                daemon.terminate()
            for daemon in self._daemons.values():
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            self._daemons = {}
            if self._hosts_added:
                kept = [line for line in HOSTS.read_text().splitlines(keepends=True) if MARK not in line]
                HOSTS.write_text("".join(kept))  # in place: in a container the file is a mount

    def _end_jobs(self) -> None:
        """Cancels what is left of the jobs, without the patience of KillWait, and waits until it is gone."""
        self.run("scancel", "--signal=KILL", "--full", "--user=root", check=False)
        self.run("scancel", "--user=root", check=False)
        self.wait("the jobs to end", lambda: not self.run("squeue", "--noheader").stdout.strip())

    def run(self, *command: str, check: bool = True, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Runs one of SLURM's programs to its end, and returns what it printed."""
        path = _program(command[0]) or command[0]
        done = subprocess.run(
            [path, *command[1:]], env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            raise ClusterError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says, field by field."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", str(number)).stdout))

    def processes(self, number: int, rank: int) -> list[int]:
        """The processes, on this machine, of one task of a job's steps."""
        wanted = {f"SLURM_JOB_ID={number}".encode(), f"SLURM_PROCID={rank}".encode()}
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environment = set((path / "environ").read_bytes().split(b"\0"))
            except OSError:
                continue
            if wanted <= environment and any(name.startswith(b"SLURM_STEP_ID=") for name in environment):
                found.append(int(path.name))
        return sorted(found)

    def wait(self, what: str, ready: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Waits until a condition holds.

        Raises:
            ClusterError: it did not within the time, or a daemon died; with the end of each daemon's log.
        """
        end = time.monotonic() + seconds
        while not ready():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                problem = f"{', '.join(dead)} died" if dead else f"{seconds} s passed"
                raise ClusterError(f"{problem} while waiting for {what}\n{self._logs()}")
            time.sleep(0.1)

    def _logs(self) -> str:
        logs = [*self.folder.glob("*.log"), *self.folder.glob("*.out"), *self.folder.glob("munge/log")]
        return "\n".join(f"--- {path}\n" + "\n".join(path.read_text().splitlines()[-20:]) for path in logs)

    def _start(self, *command: str) -> None:
        name = " ".join(command[:4]) if command[0] == "slurmd" else command[0]
        path = _program(command[0])
        assert path is not None
        with (self.folder / f"{command[0]}.{len(self._daemons)}.out").open("wb") as output:
            self._daemons[name] = subprocess.Popen(
                [path, *command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the tests alone, which then end the daemons in order
            )

    def _idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%t", check=False).stdout.split()
        return states == ["idle"] * len(NODES)

    def _add_hosts(self) -> None:
        """Makes the nodes' names known: Lightning connects the processes by the name of the first node."""
        names = {word for line in HOSTS.read_text().splitlines() for word in line.split("#")[0].split()[1:]}
        lines = [f"127.0.0.1 {name} {MARK}\n" for name in NODES if name not in names]
        if lines:
            text = HOSTS.read_text()
            self._hosts_added = True
            HOSTS.write_text(text + ("" if text.endswith("\n") else "\n") + "".join(lines))
