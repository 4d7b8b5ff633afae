from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.anytime import ALWAYS, CRITERIA, NEVER, MultiExit, Outcomes, Policy, each_exit, exit_costs, iterate, run
from models.compute import count, executed_by_parts
from tests.library.outcomes import naive_exits


class Cascade(nn.Module):
    """The smallest network with exits; it notes how many samples each part ran for."""

    def __init__(self, exits: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.num_exits = exits
        self.stages = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(exits))
        self.heads = nn.ModuleList(nn.Linear(6, classes) for _ in range(exits))
        self.ran: list[int] = []

    def start(self, images: Tensor) -> dict[str, Any]:
        return {"x": images, "kept": [images.mean((2, 3))], "none": ()}

    def advance(self, exit: int, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        self.ran.append(len(state["x"]))
        x = self.stages[exit](state["x"]).tanh()
        pooled = torch.cat([x.mean((2, 3)), state["kept"][0]], 1)
        return self.heads[exit](pooled) * 3, {**state, "x": x}

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(iterate(self, images))


@pytest.fixture
def cascade() -> Cascade:
    torch.manual_seed(0)
    return Cascade().eval()


def simulated(network: nn.Module, images: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        every = torch.stack(network(images))
    leaves = torch.stack([policy.leaves(exit, logits) for exit, logits in enumerate(every)])
    exits = torch.tensor(naive_exits(leaves.numpy(), [1] * len(leaves)))
    return every[exits, torch.arange(len(images))], exits


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "random"])
@pytest.mark.parametrize("min_leaving", [0.0, 0.05, 0.3, 1.0])
def test_compaction_is_the_simulation(cascade: Cascade, criterion: str, min_leaving: float) -> None:
    images = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sure = Outcomes.from_logits(cascade(images), torch.zeros(40, dtype=torch.long), criterion).confidence
    # Half way between two samples, so that float noise decides nothing.
    thresholds = [((a + b) / 2).item() for a, b in (row.sort().values[25:27] for row in sure)]
    policy = Policy(criterion, tuple(thresholds))
    cascade.ran.clear()
    logits, exits = run(cascade, images, policy, min_leaving)
    ran = list(cascade.ran)
    expected, expected_exits = simulated(cascade, images, policy)
    assert torch.equal(exits, expected_exits)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    assert len(exits.unique()) == 4
    left = [(exits >= exit).sum().item() for exit in range(4)]
    if min_leaving == 0:
        assert ran == left
    elif min_leaving == 1:
        assert ran == [40] * 4
    else:
        # Whoever is carried along is fewer than the share that is worth a move.
        assert all(now - needed < max(min_leaving * now, 1) for now, needed in zip(ran, left, strict=True))


def test_nothing_runs_after_everyone_left(cascade: Cascade) -> None:
    images = torch.randn(3, 3, 4, 4)
    logits, exits = run(cascade, images, Policy("max_prob", (NEVER, ALWAYS, 0.5, 0.5)))
    assert cascade.ran == [3, 3]
    assert exits.tolist() == [1, 1, 1]
    cascade.ran.clear()
    everyone, exits = run(cascade, images, Policy("max_prob", (NEVER,) * 4))
    assert cascade.ran == [3] * 4
    assert exits.tolist() == [3] * 3
    assert not torch.equal(everyone, logits)


def test_random_policy_leaves_in_its_shares(cascade: Cascade) -> None:
    torch.manual_seed(0)
    _, exits = run(cascade, torch.randn(4000, 3, 2, 2), Policy("random", (0.75, 0.5, NEVER, ALWAYS)))
    shares = exits.bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.375, 0.0, 0.375]), atol=0.03, rtol=0)


def test_run_refuses_what_would_be_wrong(cascade: Cascade) -> None:
    images = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="3 thresholds, but the network has 4 exits"):
        run(cascade, images, Policy("max_prob", (0.5,) * 3))
    with pytest.raises(ValueError, match="eval"):
        run(cascade.train(), images, Policy("max_prob", (0.5,) * 4))
    with pytest.raises(ValueError, match="from 0 to 1"):
        run(cascade.eval(), images, Policy("max_prob", (0.5,) * 4), min_leaving=20)
    with pytest.raises(ValueError, match="threshold for each exit"):
        Policy("max_prob", ())
    with pytest.raises(ValueError, match="threshold for each exit"):
        Policy("max_prob", (float("nan"),))


def test_an_exit_runs_when_it_is_asked_for(cascade: Cascade) -> None:
    images = torch.randn(2, 3, 4, 4)
    expected = cascade(images)
    cascade.ran.clear()
    exits = each_exit(cascade, images)
    first = next(exits)
    assert cascade.ran == [2]
    assert torch.equal(torch.stack([first, *exits]), torch.stack(expected))
    assert cascade.ran == [2] * 4


def test_a_network_without_exits_is_one_exit_and_a_list_is_several() -> None:
    images = torch.randn(2, 3, 4, 4)
    (only,) = each_exit(nn.Identity(), images)
    assert only is images
    assert [len(half) for half in each_exit(Halves(), images)] == [1, 1]


class Halves(nn.Module):
    def forward(self, images: Tensor) -> list[Tensor]:
        return list(images.split(1))


def test_costs_of_a_real_inference_are_those_of_shapes(cascade: Cascade) -> None:
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        counted = executed_by_parts(each_exit(cascade, images), 5)
    assert [macs for _, macs in counted] == exit_costs(cascade, (3, 8, 8))
    assert torch.equal(torch.stack([logits for logits, _ in counted]), torch.stack(cascade(images)))


def test_costs_add_up(cascade: Cascade) -> None:
    stage, head = 8 * 8 * 3 * 3 * 9, 6 * 5
    assert exit_costs(cascade, (3, 8, 8)) == [(exit + 1) * (stage + head) for exit in range(4)]
    assert exit_costs(cascade, (3, 8, 8))[-1] == count(cascade, (3, 8, 8)).macs
    assert isinstance(cascade, MultiExit)
    assert not cascade.training
