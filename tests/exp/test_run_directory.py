"""Which run a command goes on with, when exp has learned new options since the run was started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from exp.run_directory import fingerprint, open_run, read_state

OLD: dict[str, Any] = {"model": {"lr": 0.1}, "trainer": {}}
NEW: dict[str, Any] = {"model": {"lr": 0.1, "neck": None}, "trainer": {}}


def resolve(path: Path) -> dict[str, Any] | None:
    """Today every model has a neck, and no momentum."""
    found = yaml.safe_load(path.read_text())
    return None if "momentum" in found["model"] else {**found, "model": {"neck": None, **found["model"]}}


def started(root: Path, config: dict[str, Any]) -> Path:
    run = open_run(root, "run", None, "auto", config)
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    run._lock.close()  # type: ignore[union-attr]
    return run.path


@pytest.mark.parametrize("options", [{"version": None}, {"version": "0"}])
def test_an_option_that_has_come_since_does_not_part_a_run_from_its_command(
    options: dict[str, Any], tmp_path: Path
) -> None:
    path = started(tmp_path, OLD)
    run = open_run(tmp_path, "run", options["version"], "auto", NEW, resolve)
    assert run.path == path
    assert not run.notes
    assert read_state(path)["fingerprint"] == fingerprint(NEW)


@pytest.mark.parametrize("model", [{"lr": 0.2}, {"lr": 0.1, "neck": "fpn"}, {"lr": 0.1, "momentum": 0.9}])
def test_other_values_and_options_that_are_gone_do(model: dict[str, Any], tmp_path: Path) -> None:
    path = started(tmp_path, {**OLD, "model": model})
    run = open_run(tmp_path, "run", None, "auto", NEW, resolve)
    assert run.path != path
    assert "of another config" in run.notes[0]
    assert read_state(path)["fingerprint"] != fingerprint(NEW)
