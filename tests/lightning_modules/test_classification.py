"""Losses and metrics of classification, against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from lightning_modules import Classification, Mix
from models.classifiers import dynamic_kernels
from tests.library.batches import Batches

CLASSES = 7


class Exits(nn.Module):
    """Two exits: the first knows nothing, the second reads the answer off the image."""

    def __init__(self, exits: int = 2) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(CLASSES))
        self.exits = exits

    def forward(self, images: Tensor) -> Any:
        logits = images[:, 0, :, 0]
        return [self.bias.expand(len(images), CLASSES), logits + self.bias][-self.exits :]


class Data(lightning.LightningDataModule):
    batch_size = 5

    def __init__(self, samples: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(samples, 3, CLASSES, 1, generator=generator)
        self.labels = torch.randint(CLASSES, (samples,), generator=generator)

    def loader(self) -> Batches:
        parts = range(0, len(self.labels), self.batch_size)
        batches = [
            {
                "image": self.images[i : i + self.batch_size],
                "label": self.labels[i : i + self.batch_size],
                "index": torch.arange(len(self.labels))[i : i + self.batch_size],
            }
            for i in parts
        ]
        return Batches(batches)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", max_epochs=1, default_root_dir=folder, **quiet, **options)


def test_metrics_count_every_sample_once(tmp_path: Path) -> None:
    """13 samples in batches of 5: the last batch has 3, which a mean of batch means would overrate."""
    data = Data(13)
    logits = data.images[:, 0, :, 0]
    (logged,) = trainer(tmp_path).test(Classification(Exits(), num_classes=CLASSES), data, verbose=False)
    order = logits.argsort(1, descending=True)
    hits = order == data.labels[:, None]
    assert logged["test/top1"] == pytest.approx(hits[:, 0].float().mean().item())
    assert logged["test/top5"] == pytest.approx(hits[:, :5].any(1).float().mean().item())
    assert logged["test/loss"] == pytest.approx(F.cross_entropy(logits, data.labels).item())
    assert logged["test/top1_exit0"] == pytest.approx((data.labels == 0).float().mean().item())
    assert logged["test/loss_exit0"] == pytest.approx(torch.tensor(CLASSES).log().item())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_over_exits(smoothing: float, tmp_path: Path) -> None:
    data = Data(5)
    module = Classification(Exits(), num_classes=CLASSES, label_smoothing=smoothing)
    runner = trainer(tmp_path, log_every_n_steps=1)
    runner.fit(module, train_dataloaders=data.train_dataloader())
    logp = F.log_softmax(torch.stack([torch.zeros(5, CLASSES), data.images[:, 0, :, 0]]), -1)
    picked = logp[:, torch.arange(5), data.labels]
    expected = -((1 - smoothing) * picked + smoothing * logp.mean(-1)).mean()
    assert runner.logged_metrics["train/loss"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("given", "weights"), [("mean", [0.5, 0.5]), ("sum", [1.0, 1.0]), ([0.25, 2.0], [0.25, 2.0]), ([0.0, 1.0], [0, 1])]
)
def test_loss_weighs_the_exits(given: Any, weights: list[float], tmp_path: Path) -> None:
    data = Data(5)
    module = Classification(Exits(), num_classes=CLASSES, exit_weights=given)
    runner = trainer(tmp_path, log_every_n_steps=1)
    runner.fit(module, train_dataloaders=data.train_dataloader())
    exits = [torch.zeros(5, CLASSES), data.images[:, 0, :, 0]]
    terms = [w * F.cross_entropy(logits, data.labels).item() for w, logits in zip(weights, exits, strict=True)]
    logged = [runner.logged_metrics[f"train/loss_exit{i}"].item() for i in range(2)]
    assert logged == pytest.approx(terms, rel=1e-6)
    assert runner.logged_metrics["train/loss"].item() == pytest.approx(sum(terms), rel=1e-6)


@pytest.mark.parametrize("exits", [1, 2])
def test_weights_are_one_for_each_exit(exits: int, tmp_path: Path) -> None:
    module = Classification(Exits(exits), num_classes=CLASSES, exit_weights=[1.0, 1.0, 0.5])
    message = rf"exit_weights has 3 numbers \(1, 1, 0\.5\), but Exits has {exits} exits: give one number for each"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(module, train_dataloaders=Data(5).train_dataloader())


@pytest.mark.parametrize("given", ["total", [1.0, -1.0]])
def test_weights_of_exits_make_sense(given: Any) -> None:
    with pytest.raises(ValueError, match="mean, sum or a number for each exit, 0 or more, not"):
        Classification(Exits(), num_classes=CLASSES, exit_weights=given)


def test_mixed_targets_include_the_smoothing(tmp_path: Path) -> None:
    module = Classification(Exits(1), num_classes=CLASSES, label_smoothing=0.1, mix=Mix(mixup=1.0, cutmix=0.0))
    assert module.mix is not None
    _, targets = module.mix(torch.randn(4, 3, CLASSES, 1), torch.tensor([0, 1, 2, 3]))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert targets.min() == pytest.approx(0.1 / CLASSES)
    runner = trainer(tmp_path, log_every_n_steps=1)
    data = Data(4)
    data.batch_size = 4
    runner.fit(module, train_dataloaders=data.train_dataloader())
    assert "train/top1" not in runner.logged_metrics


@pytest.mark.parametrize("erase_mixed", [False, True])
def test_images_are_erased_before_or_after_they_are_mixed(erase_mixed: bool, tmp_path: Path) -> None:
    module = Classification(Exits(1), num_classes=CLASSES, mix=Mix(), random_erasing=0.5, erase_mixed=erase_mixed)
    order: list[str] = []
    runner, data = trainer(tmp_path), Data(4)
    data.batch_size = 4

    class Watch(Callback):
        def on_train_start(self, *_: Any) -> None:
            module.erase = lambda images: order.append("erase") or images  # type: ignore[assignment]
            module.mix = lambda images, labels: order.append("mix") or (images, labels)  # type: ignore[assignment]

    runner.callbacks.append(Watch())  # type: ignore[attr-defined]
    runner.fit(module, train_dataloaders=data.train_dataloader())
    assert order == (["mix", "erase"] if erase_mixed else ["erase", "mix"])


def test_prediction_sums_to_one(tmp_path: Path) -> None:
    data = Data(8)
    module = Classification(Exits(), num_classes=CLASSES)
    outputs = trainer(tmp_path).predict(module, data.predict_dataloader())
    assert outputs is not None
    probabilities = torch.cat([batch["probabilities"] for batch in outputs])
    torch.testing.assert_close(probabilities, data.images[:, 0, :, 0].softmax(1))


@pytest.mark.parametrize("layer", ["cond_conv", "dynamic_conv"])
def test_channels_last_takes_kernels_of_five_axes(layer: Any) -> None:
    torch.manual_seed(0)
    sizes = {"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [4, 4, 8, 8]}
    network = dynamic_kernels("ladder_r50_0_resnet", CLASSES, layer, options=sizes).double().eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.double)
    expected = network(images)
    torch.testing.assert_close(Classification(network, channels_last=True)(images), expected)
    convolutions = [module.weight for module in network.modules() if type(module) is nn.Conv2d]
    assert convolutions
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)


def test_number_of_classes_must_be_known() -> None:
    with pytest.raises(ValueError, match="Exits has no attribute num_classes"):
        Classification(Exits())


def test_logits_of_another_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="returns 7 logits, expected 9"):
        trainer(tmp_path).test(Classification(Exits(), num_classes=9), Data(5), verbose=False)
