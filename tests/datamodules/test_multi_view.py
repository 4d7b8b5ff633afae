"""Any data set in several views, and with few of its labels."""

from __future__ import annotations

import albumentations as A
import numpy as np
import pytest
import torch

from datamodules import DataError, Digits, FewLabels, MultiView, View
from datamodules.errors import OptionError
from datamodules.pixels import Pixels

MOVED = [A.Affine(translate_percent=(-0.2, 0.2), p=1.0)]


def few(count: int = 2, seed: int = 0, **options: int | None) -> FewLabels:
    data = FewLabels(Digits(batch_size=8), [View([]), View(MOVED)], count, unlabelled_ratio=3, **options)
    data.seed = seed
    return data


def test_training_images_have_views_and_others_do_not() -> None:
    data = MultiView(Digits(batch_size=32), [View(MOVED, 2), View([A.RandomCrop(6, 6)], 3)])
    batch = next(iter(data.train_dataloader()))
    assert [view.shape for view in batch["image"]] == [(2, 32, 3, 8, 8), (3, 32, 3, 6, 6)]
    assert not torch.equal(*batch["image"][0])
    again = next(iter(MultiView(Digits(batch_size=32), data.views).train_dataloader()))
    assert all(torch.equal(*pair) for pair in zip(batch["image"], again["image"], strict=True))
    for loader in (data.val_dataloader(), data.test_dataloader(), data.plain_train_dataloader()):
        assert next(iter(loader))["image"].shape == (32, 3, 8, 8)
    assert data.num_classes == 10
    assert data.mean == Digits.mean


def test_what_weights_expect_reaches_the_data() -> None:
    data = MultiView(Digits(batch_size=4), [View([])])
    data.adopt(Pixels((0.5,) * 3, (0.25,) * 3))
    assert data.pixels.mean == data.data.pixels.mean == (0.5,) * 3


def test_batches_have_labelled_images_beside_views_of_unlabelled_ones() -> None:
    data = few()
    batch = next(iter(data.train_dataloader()))
    assert batch["labelled"]["image"].shape == (8, 3, 8, 8)
    assert [view.shape for view in batch["train"]["image"]] == [(2, 24, 3, 8, 8)]
    assert len(data.source("train")) == 1258


def test_each_class_has_its_labels_and_seeds_choose_them() -> None:
    data = few(3)
    chosen = data.source("labelled")
    assert np.bincount(chosen.labels).tolist() == [3] * 10  # type: ignore[attr-defined]
    names = {chosen.name(i) for i in range(len(chosen))}

    def others(**options: int) -> set[str]:
        source = few(**options).source("labelled")
        return {source.name(i) for i in range(len(source))}

    assert names == others(count=3)
    assert names != others(count=3, seed=1)
    assert names == others(count=3, seed=1, label_seed=0)
    assert others(count=1) < names < others(count=5)


def test_a_checkpoint_keeps_the_labels() -> None:
    before, after = few(seed=0), few(seed=1)
    before.setup("fit")
    after.setup("fit")
    after.load_state_dict(before.state_dict())
    assert np.array_equal(after.source("labelled").labels, before.source("labelled").labels)  # type: ignore[attr-defined]
    first = [after.source("labelled").name(i) for i in range(20)]
    assert first == [before.source("labelled").name(i) for i in range(20)]
    unopened = few(seed=1)
    unopened.load_state_dict(before.state_dict())
    assert first == [unopened.source("labelled").name(i) for i in range(20)]


def test_more_labels_than_images_are_refused() -> None:
    with pytest.raises(DataError, match="the class '0' has 124 training images, fewer than labels_per_class=200"):
        few(200).source("labelled")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiView(Digits(4), []), "name at least one view"),
        (lambda: MultiView(Digits(4), [View([], 0)]), "copies of 1 or more"),
        (lambda: few(0), "labels_per_class=0"),
    ],
)
def test_impossible_options_are_refused(make, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()
