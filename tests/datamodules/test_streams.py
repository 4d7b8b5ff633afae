"""Labelled and unlabelled images side by side, resumable to the sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules import DataError, Digits
from datamodules.batches import RoundBatches, SideBySide, TrainBatches
from datamodules.ordering import derived_seed, permutation
from datamodules.splits import Source, Subset
from tests.library.recorder import SaveEverywhere

EPOCHS, BATCH = 3, 250


class HalfLabelled(Digits):
    """Digits of which every third one is labelled, and two unlabelled ones are seen beside each labelled one."""

    def open(self) -> dict[str, Source | None]:
        sources = super().open()
        train = sources["train"]
        assert isinstance(train, Subset)
        n = np.arange(len(train))
        return sources | {"train": Subset(train, n[n % 3 > 0]), "unlabelled": Subset(train, n[n % 3 == 0])}

    def streams(self) -> dict[str, int]:
        return {"train": self.batch_size, "unlabelled": 2 * self.batch_size}


class Recorder(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(192, 10)
        self.stream: list[tuple[int, dict[str, tuple[list[int], float]]]] = []

    def training_step(self, batch: dict[str, dict[str, torch.Tensor]], batch_idx: int) -> torch.Tensor:
        seen = {name: (part["index"].tolist(), float(part["image"].double().sum())) for name, part in batch.items()}
        self.stream.append((self.current_epoch, seen))
        return sum(self.layer(part["image"].flatten(1)).square().mean() for part in batch.values())  # type: ignore

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(folder: Path, resume: str | None = None, workers: int = 0, save: bool = False, **limits: Any) -> list[Any]:
    module, data = Recorder(), HalfLabelled(batch_size=BATCH, num_workers=workers)
    data.seed = 5
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[SaveEverywhere(folder)] if save else [],
        **limits,
    )
    trainer.fit(module, data, ckpt_path=str(folder / resume) if resume else None, weights_only=True)
    return module.stream


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, fit(folder, save=True, max_epochs=EPOCHS)


def test_an_epoch_is_a_pass_over_the_first_stream_and_others_go_on(whole: tuple[Path, list[Any]]) -> None:
    _, stream = whole
    # 838 labelled images are 3 batches of 250.
    assert [epoch for epoch, _ in stream] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    labelled, unlabelled = (
        [index for _, seen in stream for index in seen[name][0]] for name in ("train", "unlabelled")
    )
    assert labelled[:750] == permutation(5, 0, 838)[:750].tolist()
    assert labelled[750:1500] == permutation(5, 1, 838)[:750].tolist()
    # 9 batches of 500 are 10 rounds of 420 images and 300 images.
    seed = derived_seed(5, "unlabelled")
    assert unlabelled == np.concatenate([permutation(seed, number, 420) for number in range(11)])[:4500].tolist()


@pytest.mark.parametrize(
    ("resume", "done"), [("batch1.ckpt", 1), ("epoch0.ckpt", 3), ("batch5.ckpt", 5), ("epoch1.ckpt", 6)]
)
def test_interrupted_streams_continue(whole: tuple[Path, list[Any]], resume: str, done: int) -> None:
    assert fit(whole[0], resume, max_epochs=EPOCHS) == whole[1][done:]


def test_workers_change_nothing_and_a_checkpoint_carries_one_position(
    whole: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    assert fit(tmp_path, workers=2, save=True, max_steps=2) == whole[1][:2]
    state = torch.load(tmp_path / "batch2.ckpt", weights_only=True)["loops"]["fit_loop"]["state_dict"]
    assert state["combined_loader"] == [{"epoch": 0, "samples": 2 * BATCH}]
    assert fit(tmp_path, "batch2.ckpt", workers=2, max_epochs=EPOCHS) == whole[1][2:]


@given(
    n=st.tuples(st.integers(12, 60), st.integers(1, 60)),
    batch=st.tuples(st.sampled_from([4, 12]), st.sampled_from([4, 8])),
    before=st.sampled_from([1, 2, 4]),
    after=st.sampled_from([1, 2, 4]),
    data=st.data(),
)
def test_streams_are_the_same_on_other_devices(
    n: tuple[int, int], batch: tuple[int, int], before: int, after: int, data: st.DataObject
) -> None:
    def joined(world: int, samples: int = 0) -> list[dict[str, list[tuple[int, int]]]]:
        ranks = [
            SideBySide(
                "train",
                TrainBatches(n[0], batch[0], rank=rank, world_size=world),
                {"other": RoundBatches(n[1], batch[1], 9, rank, world)},
            ).keys(3, samples)
            for rank in range(world)
        ]
        return [
            {name: [key for part in parts for key in part[name]] for name in ("train", "other")}
            for parts in zip(*ranks, strict=True)
        ]

    alone = joined(1)
    done = data.draw(st.integers(0, len(alone)))
    assert joined(before)[:done] + joined(after, done * batch[0]) == alone
    rounds = [key for step in alone for key in step["other"]]
    first = 3 * len(alone) * batch[1]
    assert [number * n[1] + permutation(9, number, n[1]).tolist().index(index) for number, index in rounds] == list(
        range(first, first + len(rounds))
    )


def test_streams_are_drawn_and_augmented_apart() -> None:
    """Two streams of the same images have orders and random numbers of their own."""

    class Twice(HalfLabelled):
        def open(self) -> dict[str, Source | None]:
            sources = Digits.open(self)
            return sources | {"unlabelled": sources["train"]}

        def streams(self) -> dict[str, int]:
            return dict.fromkeys(("train", "unlabelled"), 1258)

    batch = next(iter(Twice().train_dataloader()))
    first, other = (part["image"][part["index"].argsort()] for part in batch.values())
    assert batch["train"]["index"].tolist() != batch["unlabelled"]["index"].tolist()
    # A fifth of the digits is not augmented.
    assert 0.01 < (first == other).flatten(1).all(1).float().mean() < 0.1


def test_each_stream_is_shared_equally() -> None:
    with pytest.raises(DataError, match="multiple of 2"):
        RoundBatches(10, 3, world_size=2)


def test_every_stream_is_normalised() -> None:
    data = HalfLabelled(batch_size=10)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert {name: (part["image"].dtype, len(part["label"])) for name, part in batch.items()} == {
        "train": (torch.float32, 10),
        "unlabelled": (torch.float32, 20),
    }


def test_training_images_without_augmentation() -> None:
    data = HalfLabelled(batch_size=100, num_workers=0)
    batches = list(data.plain_train_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(838))
    assert np.array_equal(batches[3]["image"][7].permute(1, 2, 0).numpy(), data.raw_image("train", 307))
