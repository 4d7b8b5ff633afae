"""The search that an arm of a claim takes its network from, run once in the directory of the supernet's run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from exp.claims.taken import Searched
from exp.extraction import config_of_architecture, read_architecture


class SearchFailed(ValueError):
    """A search that has found nothing; the message is the last that it said."""


def found(taken: Searched, run: Path, config: dict[str, Any]) -> str:
    """What an arm takes of a search, as the value of an option. A search that has ended is not run again.

    Args:
        taken: What is searched for.
        run: Directory of the supernet's run, which has ended.
        config: Of that run, in plain values.

    Raises:
        SearchFailed: The search has ended with an error.
    """
    folder = run / "search" / taken.name
    if not (folder / "result.json").is_file():
        command = [sys.executable, "-m", "exp", "search", str(run), *taken.options, f"--name={taken.name}", "--jobs=1"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            said = (ended.stderr or ended.stdout).strip().splitlines()
            raise SearchFailed(f"search {run}: {said[-1] if said else f'exit code {ended.returncode}'}")
    if taken.of_weights:
        return str(folder / "best.safetensors")
    network = config_of_architecture(config, read_architecture(folder / "best.yaml"))["model"]["init_args"]["network"]
    return json.dumps(network)
