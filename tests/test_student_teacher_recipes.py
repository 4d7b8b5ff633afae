"""Students and teachers at full size: the published numbers of parameters, and steps as they were trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules import FewLabels, MultiView
from datamodules.transforms import CTAugment, RandAugmentMC
from lightning_modules import FixMatch, SelfSupervised
from models.compute import count, parameter_count
from tests.library.recipes import ROOT, TASKS, built, is_recipe

# Parameters of the student with its heads, of the teacher, and 1e9 multiply-adds of a backbone at 224.
BACKBONES = {
    "moco_v2_imagenet1k": (27_966_656, 27_966_656, 4.087),
    "byol_imagenet1k": (35_067_456 - 2 * 256, 32_957_760 - 256, 4.087),
    "dino_container_light_imagenet1k": (20_120_643 + 22_614_272, 20_120_643 + 22_614_272, 3.8472),
    "dino_imagenet1k": (21_665_664 + 22_352_128, 21_665_664 + 22_352_128, 4.598),
}
# Parameters of a network, and its 1e9 multiply-adds at 32.
CLASSIFIERS = {"fixmatch_cifar10": (1_467_610, 0.2144), "fixmatch_cta_cifar10": (1_467_610, 0.2144)}


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are typed in the checkout's root."""
    monkeypatch.chdir(ROOT)


def test_every_recipe_is_checked() -> None:
    found = [path.stem for path in TASKS if path.parent.name == "self_supervised" and is_recipe(path)]
    assert sorted(BACKBONES) == found
    found = [path.stem for path in TASKS if path.parent.name == "semi_supervised" and is_recipe(path)]
    assert sorted(CLASSIFIERS) == found


@pytest.mark.parametrize("name", BACKBONES)
def test_networks_have_the_published_size(name: str) -> None:
    student, teacher, gmacs = BACKBONES[name]
    cli = built(Path(f"configs/self_supervised/{name}.yaml"))
    assert isinstance(cli.model, SelfSupervised)
    assert isinstance(cli.datamodule, MultiView)
    network = cli.model.network
    predictor = getattr(network, "predictor", None)
    assert parameter_count(network.student) + (parameter_count(predictor) if predictor else 0) == student
    assert parameter_count(network.teacher) == teacher
    assert count(network.student.backbone, (3, 224, 224)).macs / 1e9 == pytest.approx(gmacs, rel=1e-3)
    assert sum(view.copies for view in cli.datamodule.views) == (10 if name.startswith("dino") else 2)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_few_labels_have_the_published_recipe(name: str) -> None:
    params, gmacs = CLASSIFIERS[name]
    cli = built(Path(f"configs/semi_supervised/{name}.yaml"))
    assert isinstance(cli.model, FixMatch)
    assert isinstance(cli.datamodule, FewLabels)
    assert parameter_count(cli.model.network) == params
    assert count(cli.model.network, (3, 32, 32)).macs / 1e9 == pytest.approx(gmacs, rel=1e-3)
    assert cli.datamodule.streams() == {"train": 448, "labelled": 64}
    strong = cli.datamodule.views[1].transforms[-1]
    if name == "fixmatch_cifar10":
        assert isinstance(strong, RandAugmentMC)
    else:
        assert isinstance(strong, CTAugment)
        assert (strong.depth, strong.threshold, strong.rates.decay) == (2, 0.8, 0.99)
