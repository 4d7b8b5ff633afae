"""Orders and random numbers as recorded: other ones would change what every old checkpoint continues with."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules import Digits
from datamodules.batches import TrainBatches
from datamodules.ordering import permutation
from datamodules.transforms.pipeline import SampleRandom


@pytest.mark.parametrize(
    ("seed", "epoch", "order"),
    [(0, 0, [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]), (7, 3, [3, 5, 4, 7, 8, 0, 9, 2, 1, 6])],
)
def test_order_of_an_epoch(seed: int, epoch: int, order: list[int]) -> None:
    assert permutation(seed, epoch, 10).tolist() == order


def test_share_of_one_of_two_processes() -> None:
    assert list(TrainBatches(11, 4, 1, 5, 1, 2).keys(2)) == [[(2, 5), (2, 6)], [(2, 9), (2, 8)]]


def test_batches_of_one_group() -> None:
    batches = TrainBatches(12, 2, 2, 5, groups=np.arange(12) % 3 == 0).keys(1)
    recorded = [[6, 9], [5, 8], [2, 4], [7, 11], [0, 3], [10, 1]]
    assert [[index for _, index in batch] for batch in batches] == recorded


def test_order_of_a_data_module() -> None:
    data = Digits(batch_size=629)
    data.seed = 3
    loader = data.train_dataloader()
    for epoch, recorded in enumerate([[1176, 175, 133, 677, 708, 953], [1133, 796, 903, 444, 301, 154]]):
        loader.set_epoch(epoch)
        assert next(iter(loader))["index"][:6].tolist() == recorded


def test_random_numbers_of_a_sample() -> None:
    random = SampleRandom()
    random.seed(3, 1, 17)
    drawn = random.numpy.integers(1000, size=4).tolist(), [random.python.randrange(1000) for _ in range(4)]
    assert drawn == ([87, 932, 651, 845], [527, 199, 424, 88])
