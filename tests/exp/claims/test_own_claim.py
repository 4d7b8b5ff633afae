"""docs/own_claim.md pasted into an empty folder, from top to bottom."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from exp.claims.claim_file import read_claim
from tests.library.runner import run

ROOT = Path(__file__).parents[3]
# As short as it gets; one seed settles nothing, but runs all of it.
SHORT = {
    "fit": ["--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--wandb=disabled"],
    "compare": ["--trainer.max_epochs=2", "--seeds", "0", "--wandb=disabled"],
}


def pieces() -> list[str]:
    """The page's commands in their order: those of exp one by one, and the shell's that stand between them."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/own_claim.md").read_text(), re.MULTILINE | re.DOTALL)
    return [piece for piece in re.split(r"^(python -m exp .*)\n", "".join(blocks), flags=re.MULTILINE) if piece]


def test_the_page_pastes_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    printed = {}
    for piece in pieces():
        if piece.startswith("python -m exp "):
            command, *arguments = shlex.split(piece)[3:]
            ended = run(command, [*arguments, *SHORT[command] * ("--init" not in arguments)], tmp_path)
            assert ended.code == (5 if "--jobs" in arguments else 0), ended.output
            printed[piece] = ended.output
        else:
            # To install the package would change the environment of the tests; it is found beside the configs, too.
            shell = re.sub(r"^python -m pip .*$", "", piece, flags=re.MULTILINE)
            subprocess.run(["bash", "-e", "-c", shell], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    assert [shlex.split(piece)[3] for piece in printed] == ["fit", "compare", "compare", "compare", "fit"]
    monkeypatch.chdir(tmp_path)
    claim = read_claim(Path("depth.yaml"))
    assert (claim.metric, claim.better, claim.percent) == ("val/worst_class", "max", True)
    network = {"class_path": "mynets.DeepNet", "init_args": {"num_classes": 3}}
    assert {name: arm.overrides for name, arm in claim.arms.items()} == {"wide": {}, "deep": {"model.network": network}}
    assert "| deep |" in (tmp_path / "runs/claims/depth/report.md").read_text()
    assert "val/worst_class" in (tmp_path / "runs/arrays/0/metrics.csv").read_text().splitlines()[0]
