"""CTAugment: which strengths are drawn, what an operation does, and that workers draw by the same rates."""

from __future__ import annotations

import copy
import random
from collections import Counter
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Digits, FewLabels, MultiView, View
from datamodules.errors import OptionError
from datamodules.transforms import CTAugment
from datamodules.transforms.ctaugment import NUM_BINS, OPERATIONS, operate

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)


def data(augment: CTAugment, workers: int = 0) -> FewLabels:
    views = [View([]), View([A.HorizontalFlip(), augment])]
    return FewLabels(Digits(batch_size=10, num_workers=workers), views, 2, unlabelled_ratio=4)


def test_bins_are_the_published_ones() -> None:
    assert len(OPERATIONS) == 19
    assert NUM_BINS == 16 * 17 + 8 + 17 + 6


def test_bins_below_the_threshold_are_not_drawn() -> None:
    augment = CTAugment(threshold=0.8, decay=0.99)
    assert augment.weights(0, 17).tolist() == [1.0] * 17
    augment.rates.drawn[:3] = torch.tensor([0.79, 0.8, 0.9])
    # (0.79 + 0.01) / 1.01 is below 0.8, (0.8 + 0.01) / 1.01 is not.
    expected = [0.0, 0.81 / 1.01, 0.91 / 1.01] + [1.0] * 14
    assert augment.weights(0, 17).tolist() == pytest.approx(expected)
    assert augment.weights(17, 17).tolist() == [1.0] * 17


def test_draws_follow_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    augment = CTAugment(depth=1)
    augment.rates.drawn.zero_()
    # Of each parameter of 17 bins only the fourth, of Posterize the second.
    first = 0
    for sizes in OPERATIONS.values():
        for size in sizes:
            augment.rates.drawn[first + (1 if size == 8 else 3)] = 1.0
            first += size
    drawn: list[tuple[str, list[float]]] = []

    def note(image: Image.Image, name: str, values: list[float], draw: Any) -> Image.Image:
        drawn.append((name, list(values)))
        return image

    monkeypatch.setattr("datamodules.transforms.ctaugment.operate", note)
    augment.set_random_seed(0)
    for _ in range(400):
        augment.apply(PICTURE)
    names = Counter(name for name, _ in drawn)
    assert set(names) == set(OPERATIONS)
    assert min(names.values()) > 5
    for name, values in drawn:
        assert len(values) == len(OPERATIONS[name])
        for value, size in zip(values, OPERATIONS[name], strict=True):
            assert int(value * size) == (1 if size == 8 else 3)


def test_probes_say_which_bins_they_used(monkeypatch: pytest.MonkeyPatch) -> None:
    augment, used = CTAugment(depth=3), []

    def note(image: Image.Image, name: str, values: list[float], draw: Any) -> Image.Image:
        first = sum(sum(sizes) for other, sizes in list(OPERATIONS.items())[: list(OPERATIONS).index(name)])
        places = [-1, -1]
        for place, (value, size) in enumerate(zip(values, OPERATIONS[name], strict=True)):
            places[place] = first + int(value * size * 0.999)
            first += size
        used.extend(places)
        return image

    monkeypatch.setattr("datamodules.transforms.ctaugment.operate", note)
    generator, bins = random.Random(0), []
    for _ in range(100):
        bins += augment.probe(PICTURE, generator.random)[1].tolist()
    assert bins == used
    assert max(bins) < NUM_BINS


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("value", [0.0, 0.5, 0.999])
def test_operations_keep_size_and_kind(name: str, value: float) -> None:
    image = Image.fromarray(PICTURE)
    changed = operate(image, name, [value] * len(OPERATIONS[name]), random.Random(0).random)
    assert changed.size == image.size
    assert changed.mode == "RGB"
    # The picture that it was made of stays.
    assert np.array_equal(np.array(image), PICTURE)


def test_values_mean_what_was_published() -> None:
    image = Image.fromarray(PICTURE)

    def pixels(name: str, *values: float) -> np.ndarray:
        return np.array(operate(image, name, values, lambda: 0.5)).astype(int)

    for blended in ("AutoContrast", "Equalize", "Invert", "Blur", "Smooth"):
        assert np.array_equal(pixels(blended, 0.0), PICTURE)
    assert np.array_equal(pixels("Invert", 1.0), 255 - PICTURE.astype(int))
    assert np.array_equal(pixels("Posterize", 0.0), PICTURE & 0x80)
    assert np.array_equal(pixels("Posterize", 0.999), PICTURE)
    assert np.array_equal(pixels("Solarize", 0.0), 255 - PICTURE.astype(int))
    # 0.1 + 1.9 v is 1.
    assert np.array_equal(pixels("Brightness", 0.9 / 1.9), PICTURE)
    for still in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
        assert np.array_equal(pixels(still, 0.5), PICTURE)
    # A square of 6 around the middle of a side of 12.
    cut = (pixels("Cutout", 0.999) == 127).all(2)
    assert np.flatnonzero(cut.any(0)).tolist() == np.flatnonzero(cut.any(1)).tolist() == [3, 4, 5, 6, 7, 8]


def test_workers_draw_by_the_rates_of_the_epoch() -> None:
    """A worker as none, also after the rates have moved, though workers have had the transforms before."""
    batches = []
    for workers in (0, 1):
        augment = CTAugment()
        images = data(augment, workers)
        loader, epochs = images.train_dataloader(), []
        for epoch in range(2):
            loader.set_epoch(epoch)
            epochs.append(next(iter(loader)))
            assert images.rates is not None
            images.rates.learnt = torch.linspace(0, 1, NUM_BINS)
        batches.append(epochs)
    for alone, parallel in zip(*batches, strict=True):
        assert torch.equal(alone["train"]["image"][0], parallel["train"]["image"][0])
        assert torch.equal(alone["labelled"]["probe"], parallel["labelled"]["probe"])
        assert torch.equal(alone["labelled"]["policy"], parallel["labelled"]["policy"])
    still = data(CTAugment())
    loader = still.train_dataloader()
    loader.set_epoch(1)
    # The same epoch by the rates that there were before.
    assert not torch.equal(next(iter(loader))["train"]["image"][0][1], batches[0][1]["train"]["image"][0][1])


def test_probes_look_like_other_images_to_the_network() -> None:
    images = data(CTAugment())
    batch = next(iter(images.train_dataloader()))
    assert batch["labelled"]["probe"].dtype == torch.uint8
    assert batch["labelled"]["policy"].shape == (10, 4)
    moved = images.on_after_batch_transfer(batch, 0)["labelled"]
    assert moved["probe"].shape == moved["image"].shape
    assert torch.equal(moved["probe"], images._normalised(batch["labelled"]["probe"]))


def test_the_rates_are_in_the_state() -> None:
    images = data(CTAugment())
    assert images.rates is not None
    images.rates.begin(3)
    images.rates.learnt = torch.linspace(0, 1, NUM_BINS)
    state = copy.deepcopy(images.state_dict())
    again = data(CTAugment())
    again.load_state_dict(state)
    assert again.rates is not None
    assert torch.equal(again.rates.drawn, torch.ones(NUM_BINS))
    # The epoch goes on as it was; the next one begins with what has been learnt.
    again.rates.begin(3)
    assert torch.equal(again.rates.drawn, torch.ones(NUM_BINS))
    again.rates.begin(4)
    assert torch.equal(again.rates.drawn, torch.linspace(0, 1, NUM_BINS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CTAugment(threshold=1.0), "from 0 to below 1"),
        (lambda: CTAugment(depth=0), "depth=0 must be at least 1"),
        (lambda: MultiView(Digits(batch_size=4), [View([CTAugment()])]), "put the data module into FewLabels"),
        (lambda: FewLabels(Digits(batch_size=4), [View([CTAugment()]), View([CTAugment()])], 1), "name CTAugment once"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()
