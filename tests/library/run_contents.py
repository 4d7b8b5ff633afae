"""What a run leaves behind, compared with what another one left."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.library.runner import die


def after(owner: type, method: str, calls: int, act: Callable[[], None] = die) -> Callable[[], None]:
    """A sabotage: acts at the given call of a method, before it does anything."""

    def sabotage() -> None:
        original, count = getattr(owner, method), [0]

        def counting(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == calls:
                act()
            return original(*args, **kwargs)

        setattr(owner, method, counting)

    return sabotage


def contents(folder: Path, name: str = "last") -> dict[str, Any]:
    checkpoint = torch.load(folder / f"runs/run/0/checkpoints/{name}.ckpt", weights_only=True)
    del checkpoint["exp_config"]
    return checkpoint


def assert_same(a: Any, b: Any, path: str = "checkpoint") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs/run/0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("train/images_per_second")
    return rows
