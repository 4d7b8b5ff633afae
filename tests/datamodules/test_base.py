from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from datamodules import DataError, DataModule, Digits

TRANSFORMS = """
- class_path: albumentations.RandomResizedCrop
  init_args: {size: [16, 16], scale: [0.5, 1.0]}
- class_path: albumentations.OneOf
  init_args:
    p: 1.0
    transforms:
    - class_path: albumentations.Blur
      init_args: {p: 1.0}
    - class_path: albumentations.SomeOf
      init_args:
        n: 1
        transforms:
        - class_path: albumentations.HorizontalFlip
        - class_path: albumentations.Affine
          init_args: {rotate: [-10, 10]}
- class_path: datamodules.transforms.RandAugment
  init_args: {policy: rand-m5-n1}
- class_path: albumentations.CoarseDropout
"""


def parse(text: str) -> DataModule:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    config = parser.parse_object({"data": yaml.safe_load(text)})
    # Once more through the file that a run writes down.
    return parser.instantiate(parser.parse_object(yaml.safe_load(parser.dump(config)))).data


@pytest.mark.filterwarnings("ignore:(?s).*does not round-trip")
def test_transforms_come_from_config() -> None:
    config = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 32}}
    config["init_args"]["train_transforms"] = yaml.safe_load(TRANSFORMS)
    data = parse(yaml.safe_dump(config))
    assert isinstance(data, Digits)
    assert [type(step).__name__ for step in data.train_transforms] == [
        "RandomResizedCrop",
        "OneOf",
        "RandAugment",
        "CoarseDropout",
    ]
    first, again = (next(iter(data.train_dataloader()))["image"] for _ in range(2))
    assert first.shape == (32, 3, 16, 16)
    assert torch.equal(first, again)
    data.seed = 1
    assert not torch.equal(next(iter(data.train_dataloader()))["image"], first)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "PackedImages", "ImageFolder", "ImageNet"])
def test_every_data_module_is_configurable(name: str) -> None:
    data = parse(f"class_path: datamodules.{name}\ninit_args: {{root: somewhere, holdout: 0.2, on_bad_sample: skip}}")
    assert data.root == Path("somewhere")  # type: ignore[attr-defined]
    assert data.on_bad_sample == "skip"
    with pytest.raises(DataError, match="somewhere"):
        data.setup("fit")


SHARED = {
    *(
        "batch_size",
        "train_transforms",
        "eval_transforms",
        "num_workers",
        "on_bad_sample",
        "max_bad_samples",
        "packed",
        "pixels",
    ),
}
LAYOUTS = {
    "Digits": {"holdout", "label_noise"},
    "DigitScenes": {"size", "objects", "digit_size", "overlap", "num_train", "num_val", "masks"},
    "DigitStreets": {"size", "objects", "digit_size", "num_train", "num_val", "num_test"}
    | {"eval_batch_size", "class_weighting"},
    "StickFigures": {"num_train", "num_val"},
    "CamVid": {"root", "eval_batch_size", "class_weighting"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_options_of_a_config_are_those_of_the_layout_and_of_every_data_module(name: str) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    root = ["--data.root=somewhere"] if "root" in LAYOUTS[name] else []
    config = parser.parse_args([f"--data=datamodules.{name}", *root])
    assert set(config.data.init_args.keys()) == SHARED | LAYOUTS[name]
    for wrong in ("--data.num_workers=x", "--data.batchsize=3", "--data.val_images=x"):
        with pytest.raises(jsonargparse.ArgumentError):
            parser.parse_args([f"--data=datamodules.{name}", *root, wrong])


def test_digits_splits_are_fixed_stratified_and_complete() -> None:
    data = Digits()
    data.setup("fit")
    sizes = {split: len(data.source(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 1258, "val": 180, "test": 359}
    names = [data.sample_name(split, i) for split in sizes for i in range(sizes[split])]
    assert sorted(names) == sorted(f"digits #{i}" for i in range(1797))
    assert set(np.bincount(data.source("val").labels)) <= {17, 18, 19}
    other = Digits()
    other.seed = 9
    assert [other.sample_name("val", i) for i in range(180)] == [data.sample_name("val", i) for i in range(180)]
    grey = data.raw_image("test", 0)
    assert grey.shape == (8, 8, 3)
    assert grey.max() == 255


def test_label_noise_is_of_the_seed_and_of_the_training_alone() -> None:
    def labels(noise: float, seed: int, split: str = "train") -> np.ndarray:
        data = Digits(label_noise=noise)
        data.seed = seed
        data.setup("fit")
        return data.source(split).labels

    clean, noisy = labels(0.0, 1), labels(0.4, 1)
    # A tenth of those that are drawn anew are what they were: 0.36 of 1,258, with a standard deviation of 0.0135.
    assert abs((clean != noisy).mean() - 0.36) < 0.05
    assert set(noisy[clean == 0]) == set(range(10))
    assert np.array_equal(noisy, labels(0.4, 1))
    assert not np.array_equal(noisy, labels(0.4, 2))
    for split in ("val", "test"):
        assert np.array_equal(labels(1.0, 1, split), labels(0.0, 1, split))
    with pytest.raises(DataError, match=r"label_noise is a share of the labels, from 0 to 1, not 1\.5"):
        Digits(label_noise=1.5)


def test_setup_opens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, opened = Digits(), []
    original = Digits.open
    monkeypatch.setattr(Digits, "open", lambda self: opened.append(1) or original(self))
    for stage in ("fit", "validate", "test", "fit"):
        data.setup(stage)
    assert len(opened) == 1


def test_bytes_become_normalised_floats() -> None:
    data = Digits(batch_size=300)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    ready = data.on_after_batch_transfer(dict(batch), 0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    torch.testing.assert_close(ready["image"], (batch["image"] / 255 - mean) / std, atol=1e-5, rtol=0)
    assert ready["image"].is_contiguous()
    assert torch.equal(ready["label"], batch["label"])
    # What a user's pipeline has made float already is left alone.
    assert data.on_after_batch_transfer(dict(ready), 0)["image"] is ready["image"]


def test_normalisation_constants_are_those_of_the_training_images() -> None:
    data = Digits(batch_size=1258, train_transforms=[])
    image = next(iter(data.train_dataloader()))["image"].double() / 255
    assert abs(image.mean() - data.mean[0]) < 1e-3
    assert abs(image.std() - data.std[0]) < 1e-3


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_images_have_the_precision_of_the_network(precision: Any) -> None:
    from tests.library.recorder import Recorder

    class Check(Recorder):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            assert batch["image"].dtype == self.layer.weight.dtype != torch.float32
            return super().training_step(batch, batch_idx)

    trainer = Trainer(accelerator="cpu", precision=precision, fast_dev_run=True, enable_progress_bar=False)
    trainer.fit(Check(), Digits())


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_workers": -1}, {"max_bad_samples": -1}])
def test_impossible_arguments(options: dict[str, int]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(options))}=-?[01]"):
        Digits(**options)


def test_too_few_images_for_one_step() -> None:
    with pytest.raises(DataError, match="1258 training samples are fewer than one optimiser step"):
        Digits(batch_size=2000).train_dataloader()
