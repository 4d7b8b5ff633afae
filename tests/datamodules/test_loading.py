from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datamodules import DataError, Digits, ImageFolder
from datamodules.batches import EvalBatches, TrainBatches
from datamodules.collation import stack
from datamodules.ordering import permutation
from datamodules.splits import hold_out

sizes = st.integers(1, 300)


@given(
    n=sizes,
    share=st.integers(1, 8),
    world=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_training_ranks_share_each_batch_of_the_permutation(
    n: int, share: int, world: int, accumulate: int, seed: int, epoch: int
) -> None:
    batch = share * world
    if n < batch * accumulate:
        with pytest.raises(DataError, match="fewer than one optimiser step"):
            TrainBatches(n, batch, accumulate, seed, 0, world)
        return
    ranks = [TrainBatches(n, batch, accumulate, seed, rank, world) for rank in range(world)]
    batches = [list(rank.keys(epoch)) for rank in ranks]
    steps = n // (batch * accumulate)
    assert {len(own) for own in batches} == {len(ranks[0])} == {steps * accumulate}
    joined = [key for parts in zip(*batches, strict=True) for part in parts for key in part]
    assert {at for at, _ in joined} == {epoch}
    assert [index for _, index in joined] == permutation(seed, epoch, n)[: steps * batch * accumulate].tolist()
    assert sorted(permutation(seed, epoch, n)) == list(range(n))


@given(
    n=st.integers(20, 300),
    batch=st.sampled_from([4, 8, 12]),
    before=st.sampled_from([1, 2, 4]),
    after=st.sampled_from([1, 2, 4]),
    data=st.data(),
)
def test_resuming_on_other_devices_continues_the_same_batches(
    n: int, batch: int, before: int, after: int, data: st.DataObject
) -> None:
    whole = list(TrainBatches(n, batch).keys(3))
    done = data.draw(st.integers(0, len(whole)))

    def joined(world: int, samples: int) -> list[list[tuple[int, int]]]:
        ranks = [TrainBatches(n, batch, rank=rank, world_size=world).keys(3, samples) for rank in range(world)]
        return [[key for part in parts for key in part] for parts in zip(*ranks, strict=True)]

    assert joined(before, 0)[:done] + joined(after, done * batch) == whole


@given(n=sizes, batch=st.integers(1, 40), world=st.integers(1, 7))
def test_evaluation_covers_every_sample_once(n: int, batch: int, world: int) -> None:
    if n < world or batch < world:
        with pytest.raises(DataError):
            EvalBatches(n, batch, 0, world)
        return
    ranks = [EvalBatches(n, batch, rank, world) for rank in range(world)]
    batches = [list(rank.keys(0)) for rank in ranks]
    assert [len(own) for own in batches] == [len(rank) for rank in ranks]
    assert all(part for own in batches for part in own)
    assert sorted(index for own in batches for part in own for _, index in part) == list(range(n))
    assert batches == [list(rank.keys(7)) for rank in ranks]


def test_unequal_shares_are_refused() -> None:
    with pytest.raises(DataError, match="multiple of 3"):
        TrainBatches(100, 10, world_size=3)


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=200).map(np.array),
    amount=st.one_of(st.floats(0.01, 0.9), st.integers(1, 100)),
)
def test_holdout_is_stratified_and_fixed(labels: np.ndarray, amount: float) -> None:
    n = len(labels)
    held_number = round(amount * n) if amount < 1 else amount
    if not 0 < held_number < n:
        with pytest.raises(DataError, match="holdout"):
            hold_out(labels, amount)
        return
    kept, held = hold_out(labels, amount)
    assert len(held) == held_number
    assert sorted([*kept, *held]) == list(range(n))
    for label in np.unique(labels):
        share = (labels == label).sum() * held_number / n
        assert abs((labels[held] == label).sum() - share) <= 1
    assert np.array_equal(hold_out(labels, amount)[1], held)


def test_holding_nothing_out_keeps_everything() -> None:
    kept, held = hold_out(np.zeros(5, np.int64), 0)
    assert kept.tolist() == [0, 1, 2, 3, 4]
    assert not len(held)


def pixels(data: Any, loader: str = "train") -> torch.Tensor:
    return torch.cat([batch["image"] for batch in getattr(data, f"{loader}_dataloader")()])


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    data = Digits(batch_size=100)
    loader = data.train_dataloader()
    first = {int(i): image for batch in loader for i, image in zip(batch["index"], batch["image"], strict=True)}
    again = {int(i): image for batch in loader for i, image in zip(batch["index"], batch["image"], strict=True)}
    assert all(torch.equal(first[i], again[i]) for i in first)
    # The same samples, in another order and in batches of another size.
    data.batch_size = 37
    other = {
        int(i): image
        for batch in data.train_dataloader()
        for i, image in zip(batch["index"], batch["image"], strict=True)
    }
    common = first.keys() & other.keys()
    assert len(common) > 1000
    assert all(torch.equal(first[i], other[i]) for i in common)
    loader.set_epoch(1)
    later = {int(i): image for batch in loader for i, image in zip(batch["index"], batch["image"], strict=True)}
    changed = [i for i in first.keys() & later.keys() if not torch.equal(first[i], later[i])]
    assert len(changed) > 500
    data.seed = 1
    assert not torch.equal(pixels(data)[:50], pixels(Digits(batch_size=37))[:50])


def test_two_loaders_do_not_share_generators() -> None:
    data = Digits(batch_size=100)
    alone = [batch["image"] for batch in data.train_dataloader()]
    one, other = iter(data.train_dataloader()), iter(data.train_dataloader())
    for expected in alone:
        assert torch.equal(next(one)["image"], expected)
        assert torch.equal(next(other)["image"], expected)


def test_stack_refuses_images_of_different_sizes() -> None:
    with pytest.raises(DataError, match="differ in size"):
        stack([{"image": np.zeros((2, 3, 3), np.uint8)}, {"image": np.zeros((3, 2, 3), np.uint8)}])


def test_images_of_different_sizes_are_one_clear_error_with_workers_too(image_tree: Path) -> None:
    Image.new("RGB", (50, 60)).save(image_tree / "train" / "ant" / "big.png")
    data = ImageFolder(image_tree, batch_size=37, holdout=0, train_transforms=[A.HorizontalFlip()], num_workers=1)
    with pytest.raises(DataError, match="differ in size"):
        list(data.train_dataloader())


SIGNALLED = """
import os, signal
from datamodules import Digits

heard = []

def main():
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *which: heard.append(which[0]))
    loader = Digits(batch_size=16, num_workers=2).train_dataloader()
    count = 0
    for batch in loader:
        if count in (1, 5):
            os.killpg(0, signal.SIGTERM if count == 1 else signal.SIGUSR1)
        count += 1
    workers = [worker.pid for worker in loader._iterator._workers]
    print(count, *heard, *workers, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    main()
"""


def test_workers_survive_the_signals_of_preemption_but_not_their_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SIGNALLED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    # The output goes to a file: workers that stay would keep a pipe open.
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        done = subprocess.run(
            [sys.executable, script], env=environment, stdout=out, stderr=err, start_new_session=True, timeout=180
        )
    count, term, usr1, *workers = map(int, (tmp_path / "out").read_text().split())
    assert (done.returncode, count, term, usr1) == (-signal.SIGKILL, 78, signal.SIGTERM, signal.SIGUSR1)
    assert len(workers) == 2
    patience = time.monotonic() + 60
    while time.monotonic() < patience and any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.1)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
