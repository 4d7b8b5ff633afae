"""The recipes of the DETR family: networks, optimisers, schedules and data as published."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datamodules import Coco
from datamodules.transforms.detection import MultiScaleCrop, ResizeShortestEdge
from exp.cli import Cli
from models.compute import parameter_count
from tests.library.recipes import ROOT, TASKS, built, is_recipe


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are typed in the checkout's root."""
    monkeypatch.chdir(ROOT)


@dataclass(frozen=True)
class Recipe:
    """What was published of a training, and parameters counted with the official modules.

    Args:
        params: of the network with 91 classes.
        lr: of the transformer; the backbone has a tenth of it.
        batch: images an optimiser step.
        epochs, drop: length of the training, and when the learning rate falls to a tenth.
        deformable: whether reference points and sampling offsets learn at a tenth of the rate, too.
        resize_first: whether images are resized before the choice of augmentations.
    """

    params: int
    lr: float = 2e-4
    batch: int = 32
    epochs: int = 50
    drop: int = 40
    deformable: bool = True
    resize_first: bool = False


# CONTAINER-LIGHT as released without classifier and last norm, less its batch norms, which are constants, in place of a
# ResNet-50's convolutions.
CONTAINER = 20_633_643 - 513_000 - 1_024 - 19_200 - 23_454_912
DETR = {"lr": 1e-4, "batch": 16, "deformable": False}
LONG = DETR | {"epochs": 300, "drop": 200}
RECIPES = {
    "detr_coco": Recipe(41_524_768, **LONG),
    "detr_dc5_coco": Recipe(41_524_768, **LONG),
    "detr_r101_coco": Recipe(60_464_672, **LONG),
    "smca_coco": Recipe(41_760_482, **DETR),
    "smca_container_light_coco": Recipe(41_760_482 + CONTAINER + 256 * (512 - 2048), **DETR),
    "deformable_detr_coco": Recipe(40_069_665),
    "deformable_detr_single_scale_coco": Recipe(34_066_593),
    "deformable_detr_dc5_coco": Recipe(34_066_593),
    "deformable_detr_refine_coco": Recipe(40_849_660),
    "deformable_detr_two_stage_coco": Recipe(41_181_529),
    "solq_coco": Recipe(54_193_660, resize_first=True),
    "solq_r101_coco": Recipe(73_133_564, resize_first=True),
    "solq_swin_large_coco": Recipe(223_622_992, resize_first=True),
}
# Parameters, learning rate for 16 images, epochs, the epochs where it drops, steps of the warm-up, and the parameters
# that do not decay: none, norms, or flat ones. What the toolboxes count more is the batch norms of ResNet-50, which are
# constants here (tests/models/detectors/test_rcnn.py).
ONE_TIME = (12, [8, 11])
THREE_TIMES = (36, [27, 33])
# Short sides of training images.
SINGLE, MULTI = [800], [640, 672, 704, 736, 768, 800]
SIZES = {"retinanet_r50_coco": MULTI, "retinanet_container_light_coco": MULTI, "fcos_r50_coco": SINGLE} | dict.fromkeys(
    [
        "mask_rcnn_container_light_coco",
        "dyfpn_r50_coco",
        "faster_rcnn_r50_coco",
        "mask_rcnn_r50_coco",
        "cascade_mask_rcnn_r50_coco",
    ],
    SINGLE,
)
HOSTS = {
    "dyfpn_r50_coco": (144_408_872 - 53_120, 0.02, *ONE_TIME, 500, "none"),
    "faster_rcnn_r50_coco": (41_699_936, 0.02, *ONE_TIME, 500, "none"),
    "mask_rcnn_r50_coco": (44_343_216, 0.02, *ONE_TIME, 500, "none"),
    "cascade_mask_rcnn_r50_coco": (77_271_486, 0.02, *ONE_TIME, 500, "none"),
    "retinanet_r50_coco": (37_915_572, 0.01, *ONE_TIME, 1000, "norms"),
    "fcos_r50_coco": (32_244_250, 0.01, *ONE_TIME, 1000, "norms"),
    # Laterals of the pyramid read 64, 128, 320 and 512 channels, and RetinaNet's first extra level the last.
    "mask_rcnn_container_light_coco": (44_343_216 + CONTAINER + 256 * (1024 - 3840), 0.02, *ONE_TIME, 500, "none"),
    "retinanet_container_light_coco": (
        37_915_572 + CONTAINER + 256 * (960 - 3584 + 9 * (512 - 2048)),
        0.01,
        *ONE_TIME,
        1000,
        "norms",
    ),
    "mask_rcnn_convnext_coco": (48_095_376, 1e-4, *THREE_TIMES, 500, "flat"),
    "cascade_mask_rcnn_convnext_coco": (85_930_578, 2e-4, *THREE_TIMES, 500, "flat"),
}


def test_every_recipe_is_checked() -> None:
    found = [path.stem for path in TASKS if path.parent.name == "detection" and is_recipe(path)]
    assert sorted([*RECIPES, *HOSTS]) == found


@pytest.mark.parametrize("name", HOSTS)
def test_recipe_of_a_host_is_the_published_one(name: str) -> None:
    params, lr, epochs, drops, warmup, exempt = HOSTS[name]
    cli = built(Path(f"configs/detection/{name}.yaml"))
    assert parameter_count(cli.model.network) == params
    assert cli.datamodule.batch_size == cli.model.reference_batch == 16
    assert cli.model.main.optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] == lr
    assert cli.trainer.max_epochs == epochs
    table = cli.model.main.schedule.table(1.0, 1000, 1000 * epochs)
    assert (np.flatnonzero(np.diff(table) < 0) + 1).tolist() == [1000 * epoch for epoch in drops]
    # From a thousandth, so that the first step after the warm-up is the first with the whole rate.
    assert table[: warmup + 1] == pytest.approx(0.001 + 0.999 * np.arange(warmup + 1) / warmup)
    network = cli.model.network
    norms = {
        f"{module_name}.{own}"
        for module_name, module in network.named_modules()
        if isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d)
        for own in ("weight", "bias")
    }
    flat = {n for n, parameter in network.named_parameters() if parameter.ndim == 1 or n.endswith("bias")}
    without = {"none": set(), "norms": norms, "flat": flat}[exempt]
    for group in cli.model.main.groups(lr, 1e-4):
        for parameter in group["param_names"]:
            assert (group["weight_decay"] == 0) == (parameter in without), parameter
    assert bool(norms) == (name == "fcos_r50_coco" or "convnext" in name or "container" in name)
    # Batch norms of the cascade's box heads are those of all devices.
    assert bool(cli.plain["trainer"]["sync_batchnorm"]) == (name == "cascade_mask_rcnn_convnext_coco")
    if name in SIZES:
        (resize,) = [each for each in cli.datamodule.train_transforms if isinstance(each, ResizeShortestEdge)]
        assert (list(resize.sizes), resize.max_size) == (SIZES[name], 1333)


def test_docs_list_every_recipe_with_its_size() -> None:
    text = (ROOT / "docs" / "detection.md").read_text()
    sizes = {name: recipe.params for name, recipe in RECIPES.items()} | {name: host[0] for name, host in HOSTS.items()}
    for name, params in sizes.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}.yaml`"))
        assert row.split("|")[2].strip() == f"{params:,}"


@pytest.fixture(params=sorted(RECIPES))
def recipe(request: pytest.FixtureRequest) -> tuple[Recipe, Cli]:
    return RECIPES[request.param], built(Path(f"configs/detection/{request.param}.yaml"))


def test_recipe_is_the_published_one(recipe: tuple[Recipe, Cli]) -> None:
    published, cli = recipe
    model, data = cli.model, cli.datamodule
    assert parameter_count(model.network) == published.params
    assert isinstance(data, Coco)
    assert data.batch_size * cli.trainer.accumulate_grad_batches == published.batch == model.reference_batch
    assert data.labels == "coco"
    assert data.masks == model.network.has_masks
    assert cli.trainer.max_epochs == published.epochs
    assert cli.trainer.gradient_clip_val == 0.1
    defaults = model.main.optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults
    assert (defaults["lr"], defaults["weight_decay"]) == (published.lr, 1e-4)
    table = model.main.schedule.table(1.0, 10, 10 * published.epochs)
    assert np.flatnonzero(np.diff(table)).tolist() == [10 * published.drop - 1]
    assert table[[0, -1]] == pytest.approx([1, 0.1])


def test_optimiser_groups_are_the_published_ones(recipe: tuple[Recipe, Cli]) -> None:
    published, cli = recipe
    groups = cli.model.main.groups(published.lr, 1e-4)
    assert {group["weight_decay"] for group in groups} == {1e-4}
    for group in groups:
        slow = ("backbone.", *(("reference_points", "sampling_offsets") if published.deformable else ()))
        for name in group["param_names"]:
            factor = 0.1 if any(text in name for text in slow) else 1.0
            assert group["lr"] == pytest.approx(factor * published.lr), name
    trained = {name for group in groups for name in group["param_names"]}
    frozen = [name for name, _ in cli.model.network.named_parameters() if name not in trained]
    resnet = bool(re.search("resnet", cli.plain["model"]["init_args"]["network"]["init_args"]["backbone"]))
    assert {name.split(".")[2] for name in frozen} == ({"conv1", "layer1"} if resnet else set())


def test_augmentation_is_the_published_one(recipe: tuple[Recipe, Cli]) -> None:
    published, cli = recipe
    flip, crop = cli.datamodule.train_transforms
    assert type(flip).__name__ == "HorizontalFlip"
    assert isinstance(crop, MultiScaleCrop)
    assert len(crop.transforms) == 1 + published.resize_first
    (resize,) = cli.datamodule.eval_transforms
    assert isinstance(resize, ResizeShortestEdge)
    swin = cli.plain["model"]["init_args"]["network"]["init_args"]["backbone"].startswith("swin")
    assert (resize.sizes, resize.max_size) == (([1088], 1333) if swin else ([800], 1333))
