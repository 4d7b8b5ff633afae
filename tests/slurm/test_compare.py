"""`python -m exp compare --executor slurm` on two real nodes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.library.slurm_cluster import PATIENCE, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
CLAIM = f"""\
claim: Two nodes train as one process does.
config: {ROOT}/configs/quickstart.yaml
metric: val/top1
unit: percent
seeds: [0, 1, 2]
overrides:
  test: false
  trainer.max_epochs: 3
  checkpoint.every_n_steps: 1
  model.init_args.network.init_args.drop_path_rate: 0.0
arms:
  one: {{}}
  nodes: {{trainer.num_nodes: 2, trainer.strategy: ddp}}
expect: "|one - nodes| < 1"
"""


def start(cluster: Cluster, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "exp", "compare", "--config", "claim.yaml", "--wandb=disabled"]
    return subprocess.Popen(
        [*command, "--executor=slurm", "--slurm", "time=10"],
        cwd=folder,
        env=cluster.environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_cells_are_jobs_that_outlive_the_command(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "claim.yaml").write_text(CLAIM)
    first = start(cluster, tmp_path)
    cluster.wait("six jobs", lambda: len(cluster.run("squeue", "--noheader").stdout.splitlines()) == 6)
    first.send_signal(signal.SIGKILL)
    first.wait()
    jobs = {path: json.loads(path.read_text())["job"] for path in tmp_path.rglob("*.cell.json")}
    second = start(cluster, tmp_path)
    output, _ = second.communicate(timeout=2 * PATIENCE)
    assert second.returncode == 0, output
    # The second command has waited for the jobs of the first and submitted none.
    assert {path: json.loads(path.read_text())["job"] for path in tmp_path.rglob("*.cell.json")} == jobs
    result = json.loads((tmp_path / "runs/claims/claim/results.json").read_text())
    assert result["verdict"] == "holds"
    assert result["failed"] == []
    log = (tmp_path / "runs/claims/claim/nodes/seed0.log").read_text()
    assert "2 x cpu" in log


def test_a_preempted_job_saves_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    text = CLAIM.replace("seeds: [0, 1, 2]", "seeds: [0]").replace("max_epochs: 3", "max_epochs: 40")
    (tmp_path / "claim.yaml").write_text(text)
    process = start(cluster, tmp_path)
    checkpoint = tmp_path / "runs/claims/claim/nodes/seed0/checkpoints/last.ckpt"
    cluster.wait("a checkpoint", checkpoint.exists)
    time.sleep(1)
    job = json.loads((tmp_path / "runs/claims/claim/nodes/seed0.cell.json").read_text())["job"]
    cluster.run("scancel", "--signal=USR2", job)
    cluster.wait("the restart", lambda: cluster.job(int(job)).get("Restarts") == "1")
    output, _ = process.communicate(timeout=2 * PATIENCE)
    # One seed allows no verdict; the cells have finished all the same.
    assert process.returncode == 5, output
    log = (tmp_path / "runs/claims/claim/nodes/seed0.log").read_text()
    assert "stopped by SIGTERM" in log
    assert "resuming from" in log


def test_wrong_options_are_refused_in_a_line(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "claim.yaml").write_text(CLAIM)
    done = subprocess.run(
        [sys.executable, "-m", "exp", "compare", "--config", "claim.yaml", "--executor=slurm", "--slurm", "tiem=10"],
        cwd=tmp_path,
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "tiem" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
