"""MoCo's queue, its logits and its shuffling."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.split_batch_norm import SplitBatchNorm2d, split_batch_norms
from models.mistakes import Mistake
from models.self_supervised.moco import MoCo, Queue
from tests.library.learners import SmallConv, learner
from tests.library.processes import on_two_processes


def test_the_oldest_keys_are_replaced() -> None:
    queue = Queue(3, 6)
    first = queue.keys.clone()
    for value in range(1, 5):
        queue.push(torch.full((2, 3), float(value)))
        if value == 2:
            assert torch.equal(queue.keys[:, 4:], first[:, 4:])
    assert queue.keys[0].tolist() == [4, 4, 2, 2, 3, 3]
    assert queue.pointer.tolist() == [2]


def test_a_batch_that_does_not_divide_the_queue_is_refused() -> None:
    with pytest.raises(Mistake, match="a queue of 1,000 keys is not filled evenly by 96 keys a step: make queue_size"):
        Queue(2, 1000).push(torch.ones(96, 2))


def test_keys_wait_for_the_step() -> None:
    """Two batches that a step accumulates are compared with the same queue, and enter it together."""
    network = learner("moco").train()
    assert isinstance(network, MoCo)
    before = network.queue.keys.clone()
    batches = [torch.randn(2, 8, 3, 8, 8) for _ in range(2)]
    for batch in batches:
        network([batch])
        assert torch.equal(network.queue.keys, before)
    network.advance()
    assert network.queue.pointer.item() == 16
    with torch.no_grad():
        expected = torch.cat([F.normalize(network.teacher(batch[1]), dim=1) for batch in batches]).T
    # The teacher normalises a batch whatever its order is.
    torch.testing.assert_close(network.queue.keys[:, :16], expected, atol=1e-5, rtol=0)
    assert torch.equal(network.queue.keys[:, 16:], before[:, 16:])
    network.advance()
    assert network.queue.pointer.item() == 16


def test_an_untrained_encoder_loses_as_much_as_guessing() -> None:
    network = learner("moco").train()
    assert isinstance(network, MoCo)
    network.temperature = 2.0
    loss = network([torch.randn(2, 32, 3, 8, 8)]).item()
    assert loss == pytest.approx(math.log(1025), abs=0.5)


def test_both_directions_fill_the_queue() -> None:
    torch.manual_seed(0)
    network = MoCo(SmallConv(), out_dim=8, queue_size=64, symmetric=True).train()
    network([torch.randn(2, 8, 3, 8, 8)])
    network.advance()
    assert network.queue.pointer.item() == 16
    assert network.remarks(2)["queue_fill"].item() == 0.5


def test_processes_shuffle_among_each_other(tmp_path: Path) -> None:
    """Each process gets the keys of its own images back, normalised among images of both."""
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def keys(rank: int) -> dict[str, Tensor]:
        network = learner("moco").train()
        network.generator = torch.Generator().manual_seed(3)
        assert isinstance(network, MoCo)
        own = network.keys_of(images[4 * rank : 4 * rank + 4])
        network.generator = torch.Generator().manual_seed(3)
        order = network.order(8)
        halves = [F.normalize(network.teacher(images[half]), dim=1) for half in order.chunk(2)]
        return {"keys": own, "expected": torch.cat(halves)[order.argsort()][4 * rank : 4 * rank + 4]}

    for found in on_two_processes(keys, tmp_path):
        torch.testing.assert_close(found["keys"], found["expected"], atol=1e-6, rtol=0)


def test_parts_of_a_batch_are_normalised_apart() -> None:
    torch.manual_seed(0)
    whole, split = nn.BatchNorm2d(3), SplitBatchNorm2d(3, 2)
    x = torch.randn(6, 3, 4, 4) * torch.arange(1, 7)[:, None, None, None]
    y = split(x)
    parts = [nn.BatchNorm2d(3) for _ in range(2)]
    expected = torch.cat([norm(part) for norm, part in zip(parts, x.chunk(2), strict=True)])
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(y, whole(x), atol=1e-2)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in parts]).mean(0)
        torch.testing.assert_close(getattr(split, name), mean, atol=1e-6, rtol=1e-5)
    assert split.num_batches_tracked.item() == 1
    torch.testing.assert_close(split.eval()(x), nn.functional.batch_norm(x, split.running_mean, split.running_var))


def test_without_a_momentum_parts_of_all_batches_weigh_alike() -> None:
    torch.manual_seed(0)
    split = SplitBatchNorm2d(3, 2, momentum=None)
    batches = [torch.randn(6, 3, 4, 4) * scale for scale in (1, 2, 3)]
    for batch in batches:
        split(batch)
    parts = torch.stack([part.transpose(0, 1).flatten(1) for batch in batches for part in batch.chunk(2)])
    torch.testing.assert_close(split.running_mean, parts.mean(2).mean(0))
    torch.testing.assert_close(split.running_var, parts.var(2).mean(0))


def test_norms_are_split_in_place() -> None:
    network = SmallConv()
    names = list(network.state_dict())
    assert isinstance(split_batch_norms(network, 4).get_submodule("norm"), SplitBatchNorm2d)
    assert list(network.state_dict()) == names
