"""A training that nobody can read goes on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from exp.output import forgive
from tests.library.runner import SMALL, run


def test_what_cannot_be_printed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, open("/dev/full", "w", buffering=1))  # noqa: SIM115  it stays open
    with pytest.raises(OSError, match="No space"):
        print("lost", flush=True)
    forgive()
    print("lost", flush=True)
    print("lost", file=sys.stderr)
    Console().print("lost")
    assert not sys.stdout.isatty()


def test_a_training_whose_terminal_is_gone_goes_on(tmp_path: Path) -> None:
    def sabotage() -> None:
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        sys.stdout = os.fdopen(1, "w", buffering=1)

    ended = run("fit", [*SMALL, "--experiment=run", "--trainer.max_epochs=2"], tmp_path, sabotage)
    assert ended.code == 0, ended.output
    assert "Traceback" not in ended.output
    assert (tmp_path / "runs/run/0/checkpoints/last.ckpt").exists()
