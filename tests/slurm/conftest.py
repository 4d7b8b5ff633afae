from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.library.slurm_cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes; a machine that cannot run them fails the tests, for they run only where they are asked for."""
    if problem := missing():
        pytest.fail(problem, pytrace=False)
    folder = Path(tempfile.mkdtemp(prefix="exp-slurm-"))
    folder.chmod(0o755)  # munge's socket lies in it, which every user's client must reach
    slurm = Cluster(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder)
