"""Deadlines, by a clock that a network moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.anytime import Deadline, deadline


class Exits(nn.Module):
    """Three exits that count how often they run; time passes as `costs` say."""

    num_exits = 3

    def __init__(self, clock: list[float], costs: list[float]) -> None:
        super().__init__()
        self.clock, self.costs = clock, costs
        self.ran: list[int] = []

    def start(self, images: Tensor) -> dict[str, Any]:
        return {"x": images}

    def advance(self, exit: int, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        self.clock[0] += self.costs[exit]
        self.ran.append(exit)
        return state["x"] + exit, state

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images + exit for exit in range(3)]


@pytest.mark.parametrize(
    ("seconds", "exit"), [(0.5, 0), (1.5, 0), (3.1, 1), (6.9, 1), (7.1, 2)], ids=["late", "first", "2", "2 still", "3"]
)
def test_a_deadline_stops_before_what_would_be_late(seconds: float, exit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(deadline.time, "perf_counter", lambda: clock[0])
    network = Exits(clock, [1.0, 2.0, 4.0])
    images = torch.randn(1, 3, 4, 4)
    rule = Deadline(seconds, wait=lambda: None)
    logits, reached, spent = rule.run(network, images)
    assert reached == exit
    assert spent == [1.0, 3.0, 7.0][exit]
    torch.testing.assert_close(logits, images + exit)
    # Two whole runs to know the times, and then no more than what is used.
    assert network.ran == [0, 1, 2] * 2 + list(range(exit + 1))


def test_a_deadline_learns_that_an_exit_became_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(deadline.time, "perf_counter", lambda: clock[0])
    network = Exits(clock, [1.0, 1.0, 1.0])
    rule, images = Deadline(2.5, wait=lambda: None), torch.randn(1, 3, 4, 4)
    assert rule.run(network, images)[1] == 1
    network.costs[1] = 5.0
    assert rule.run(network, images)[1:] == (1, 6.0)
    assert rule.run(network, images)[1:] == (0, 1.0)


def test_a_deadline_is_a_time() -> None:
    with pytest.raises(ValueError, match="a time above 0"):
        Deadline(0.0, wait=lambda: None)
