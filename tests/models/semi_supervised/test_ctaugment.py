"""How CTAugment's rates move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.processes import gathered_rows
from models.semi_supervised import moved_rates, recognition
from tests.library.processes import on_two_processes

DECAY = 0.9


def one_by_one(rates: list[float], uses: list[tuple[list[int], float]]) -> list[float]:
    """As the published code walks over samples and the bins that each used."""
    rates = list(rates)
    for bins, value in uses:
        for used in bins:
            if used >= 0:
                rates[used] = rates[used] * DECAY + value * (1 - DECAY)
    return rates


def test_the_first_step_by_hand() -> None:
    # Bin 2 is used twice, by 0.5 and then by 0: 1 -> 0.95 -> 0.855.
    moved = moved_rates(torch.ones(4), torch.tensor([[2, 0], [-1, 2]]), torch.tensor([0.5, 0.0]), DECAY)
    assert moved.tolist() == pytest.approx([0.95, 1.0, 0.855, 1.0])


def test_many_uses_are_as_one_after_another() -> None:
    torch.manual_seed(0)
    rates, bins, values = torch.rand(7), torch.randint(-1, 7, (40, 4)), torch.rand(40)
    expected = one_by_one(rates.tolist(), list(zip(bins.tolist(), values.tolist(), strict=True)))
    assert moved_rates(rates, bins, values, DECAY).tolist() == pytest.approx(expected, abs=1e-6)


def test_recognition_is_the_distance_to_the_label() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    error = (logits.softmax(1) - torch.eye(3)[labels]).abs().sum(1)
    torch.testing.assert_close(recognition(logits, labels), 1 - 0.5 * error)


def test_processes_learn_alike(tmp_path: Path) -> None:
    """Each has half of the batch, and both end where one process with all of it does."""
    torch.manual_seed(0)
    bins, values = torch.randint(-1, 6, (8, 4)), torch.rand(8)

    def half(rank: int) -> dict[str, torch.Tensor]:
        own = slice(4 * rank, 4 * rank + 4)
        return {"rates": moved_rates(torch.ones(6), gathered_rows(bins[own]), gathered_rows(values[own]), DECAY)}

    first, second = on_two_processes(half, tmp_path)
    assert torch.equal(first["rates"], second["rates"])
    assert torch.equal(first["rates"], moved_rates(torch.ones(6), bins, values, DECAY))
