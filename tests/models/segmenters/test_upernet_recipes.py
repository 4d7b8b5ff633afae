"""UperNet's recipes for ADE20K are what was published: arXiv 2201.03545, table 4, and its published training code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from datamodules import ADE20K
from exp.cli import Cli
from lightning_modules.parameter_groups import parameter_groups
from models.compute import parameter_count
from tests.library.recipes import ROOT, command
from tests.library.upernet_networks import MEASURED

IMAGES, STEPS = 20_210, 160_000


@dataclass(frozen=True)
class Recipe:
    """What differs from size to size.

    Args:
        size: the backbone's, as in `MEASURED`.
        weights: timm's name of the weights that the backbone starts from.
        mious: mIoU of a single scale, and of several with mirrored images, as the config says them.
        crop: side of the crops.
        drop_path: stochastic depth rate of the last block.
        lr: of AdamW.
        layers: from the image to the head, which the learning rates count.
    """

    size: str
    weights: str
    mious: tuple[float, float]
    crop: int = 512
    drop_path: float = 0.4
    lr: float = 1e-4
    layers: int = 12


RECIPES = {
    "tiny": Recipe("tiny", "fb_in1k", (46.0, 46.7), layers=6),
    "small": Recipe("small", "fb_in1k", (48.7, 49.6), drop_path=0.3),
    "base": Recipe("base", "fb_in1k", (49.1, 49.9)),
    "base_22k": Recipe("base", "fb_in22k", (52.6, 53.1), crop=640),
    "large": Recipe("large", "fb_in22k", (53.2, 53.7), crop=640),
    "xlarge": Recipe("xlarge", "fb_in22k", (53.6, 54.0), crop=640, lr=8e-5),
}


def config(name: str) -> Path:
    return Path(f"configs/segmentation/upernet_convnext_{name}_ade20k.yaml")


def test_every_recipe_is_checked() -> None:
    found = ROOT.glob("configs/segmentation/upernet_convnext_*.yaml")
    assert {path.relative_to(ROOT) for path in found} == {config(name) for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_the_published_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    published = RECIPES[name]
    with torch.device("meta"):
        # Weights would be downloaded.
        cli = Cli([*command(config(name)), "--model.init_args.network.init_args.pretrained=false"], "fit")
    task, data, given = cli.model, cli.datamodule, cli.plain["model"]["init_args"]["network"]["init_args"]
    assert parameter_count(task.network) == MEASURED[published.size][0]
    assert given["backbone"] == f"convnext_{published.size}_dense.{published.weights}"
    text = (ROOT / config(name)).read_text()
    assert all(f"{miou:.1f}" in text for miou in published.mious)
    rates = [module.drop_prob for module in task.network.modules() if isinstance(module, DropPath)]
    assert rates[-1] == max(rates) == pytest.approx(published.drop_path)
    assert (task.exit_weights, task.normalisation, task.absent, task.ohem) == ([0.4, 1.0], "pixels", "exclude", None)

    defaults = task.main.optimizer([nn.Parameter(torch.zeros(1))]).defaults
    assert (defaults["lr"], defaults["weight_decay"], tuple(defaults["betas"])) == (published.lr, 0.05, (0.9, 0.999))
    groups = parameter_groups(task.network, published.lr, 0.05, task.main.layer_decay)
    expected = {0.9**k for k in (0, *range(published.layers - 3, published.layers + 2))}
    assert sorted({group["lr_scale"] for group in groups}) == pytest.approx(sorted(expected))
    table = task.main.schedule.table(published.lr, IMAGES // 16, STEPS)
    assert table[0] == pytest.approx(published.lr * 1e-6)
    assert table.argmax() == 1500
    assert table[1500:] == pytest.approx(published.lr * (1 - np.arange(1500, STEPS) / STEPS))
    assert (cli.trainer.max_steps, cli.trainer.max_epochs) == (STEPS, -1)
    assert data.batch_size == task.reference_batch == 16

    assert isinstance(data, ADE20K)
    assert data.num_classes == task.num_classes == 150
    window = (task.sliding_window.crop, task.sliding_window.stride)
    assert window == ((published.crop,) * 2, (published.crop * 2 // 3,) * 2)
    photo = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    label = np.random.default_rng(0).integers(0, 150, (300, 400), np.uint8)
    crop = data.pipeline(data.train_transforms)({"image": photo, "mask": Drawn(label)}, 0, 0)
    assert crop["image"].shape == (published.crop, published.crop, 3)
    assert crop["label"].shape == (published.crop, published.crop)
    # Smaller images are padded last, below and to the right, with what is zero to the network.
    small = photo[:60, :80]
    for index in range(20):
        crop = data.pipeline(data.train_transforms)({"image": small, "mask": Drawn(label[:60, :80])}, 0, index)
        void = crop["label"] == 255
        assert crop["label"].shape == (published.crop, published.crop)
        assert not void[0, 0]
        assert (crop["image"][void] == (124, 116, 104)).all()
    wide = np.tile(photo[:60], (1, 3, 1))
    drawn = [
        data.pipeline(data.train_transforms)({"image": wide, "mask": Drawn(np.tile(label[:60], (1, 3)))}, 0, index)
        for index in range(8)
    ]
    voids = [each["label"] == 255 for each in drawn]
    assert any(void.any() for void in voids)
    for each, void in zip(drawn, voids, strict=True):
        assert (each["image"][void] == (124, 116, 104)).all()
        assert not void[0].any()
    whole = data.pipeline(data.eval_transforms)({"image": photo}, 0, 0)["image"]
    assert whole.shape == (published.crop, int(400 * published.crop / 300 + 0.5), 3)
    long = data.pipeline(data.eval_transforms)({"image": np.tile(photo, (1, 4, 1))}, 0, 0)["image"]
    assert long.shape[1] == published.crop * 4


@dataclass
class Drawn:
    """A label file that is in memory."""

    label: np.ndarray

    def decode(self, size: tuple[int, int]) -> np.ndarray:
        assert size == self.label.shape
        return self.label
