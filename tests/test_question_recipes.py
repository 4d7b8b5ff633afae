"""TRAR at full size: the published numbers of parameters, learning rates and temperatures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from callbacks import Annealing
from datamodules import CLEVR, VQA
from lightning_modules import QuestionAnswering
from models.compute import parameter_count
from tests.library.recipes import ROOT, TASKS, built, is_recipe

# Parameters without the embedding of words, the words of a question, the loss, the base learning rate, and by what it
# is multiplied in each epoch.
STAIRS = [0.25, 0.5, 0.75]
RECIPES: dict[str, tuple[int, int, str, float, list[float]]] = {
    "trar_vqa2": (52_433_491, 14, "bce", 1e-4, [*STAIRS, *[1] * 7, 0.2, 0.2, 0.04]),
    "trar_all_vqa2": (52_433_491, 14, "bce", 1e-4, [*STAIRS, *[1] * 7]),
    "trar_finish_vqa2": (52_433_491, 14, "bce", 1e-4, [0.2, 0.2, 0.04]),
    "trar_clevr": (48_732_214, 43, "ce", 4e-5, [*STAIRS, *[1] * 10, 0.2, 0.2, 0.04]),
}


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are typed in the checkout's root."""
    monkeypatch.chdir(ROOT)


def test_every_recipe_is_checked() -> None:
    found = [path.stem for path in TASKS if path.parent.name == "vqa" and is_recipe(path)]
    assert sorted(RECIPES) == found


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_the_published_one(name: str) -> None:
    params, words, loss, base, factors = RECIPES[name]
    cli = built(Path(f"configs/vqa/{name}.yaml"))
    task, data = cli.model, cli.datamodule
    assert isinstance(task, QuestionAnswering)
    assert isinstance(data, VQA | CLEVR)
    embedding: Any = task.network.embedding
    assert parameter_count(task.network) - embedding.weight.numel() == params
    assert (data.length, task.loss, task.reduction) == (words, loss, "sum")
    assert data.batch_size * cli.trainer.accumulate_grad_batches == 64
    defaults = task.main.optimizer([embedding.weight]).defaults
    assert (defaults["betas"], defaults["eps"], defaults["weight_decay"]) == ((0.9, 0.98), 1e-9, 0)
    assert cli.trainer.max_epochs == len(factors)
    table = task.main.schedule.table(defaults["lr"], 100, 100 * len(factors))
    assert table.reshape(-1, 100) == pytest.approx(base * np.repeat(factors, 100).reshape(-1, 100))
    annealed = [each for each in cli.trainer.callbacks if isinstance(each, Annealing)]  # type: ignore[attr-defined]
    if name == "trar_clevr":
        assert annealed[0].schedule is not None
        assert annealed[0].schedule.table(10, 1, 16)[[0, -1]] == pytest.approx([10, 0.1])
    else:
        assert not annealed
