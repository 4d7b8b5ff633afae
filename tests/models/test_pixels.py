from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision import models as torchvision_models

from datamodules import Pixels
from models import official
from models import pixels as models_pixels
from models.classifiers import dynamic_kernels, timm_classifier
from models.detectors.features import Features
from models.pixels import AS_THEY_ARE, BGR_BYTES, normalises_itself, of_published, of_timm, of_torchvision, pixels_of
from models.segmenters.upernet import UperNet

HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_everything_that_timm_publishes_is_understood() -> None:
    looks: dict[str, Any] = {}
    for name in timm.list_models(pretrained=True):
        config = timm.get_pretrained_cfg(name).to_dict()
        pixels = looks[name] = Pixels.stated(of_timm(config))
        assert (pixels.mean, pixels.std) == (tuple(config["mean"]), tuple(config["std"]))
        assert pixels.size == config["input_size"][1:]
    assert len(looks) > 1000
    # As timm's documentation and the papers have them.
    for name in (
        "vit_base_patch16_224.augreg_in21k",
        "beit_base_patch16_224.in22k_ft_in22k",
        "mixer_b16_224.goog_in21k",
        "tf_efficientnetv2_s.in21k",
        "tf_efficientnet_cc_b0_4e.in1k",
        "tf_mobilenetv3_large_100.in1k",
    ):
        assert (looks[name].mean, looks[name].std) == HALVES
    for name in ("resnet50.tv_in1k", "convnext_tiny.fb_in1k"):
        assert (looks[name].mean, looks[name].std) == IMAGENET
    assert looks["tf_efficientnetv2_s.in21k"].size == (300, 300)
    assert (looks["resnet50.tv_in1k"].interpolation, looks["convnext_tiny.fb_in1k"].interpolation) == (
        "bilinear",
        "bicubic",
    )


@pytest.mark.parametrize(
    ("stated", "black", "white"),
    [
        (AS_THEY_ARE, [0, 0, 0], [1, 1, 1]),
        (models_pixels.HALVES, [-1, -1, -1], [1, 1, 1]),
        (BGR_BYTES, [-103.53, -116.28, -123.675], [151.47, 138.72, 131.325]),
        (models_pixels.IMAGENET, [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], [0.515 / 0.229, 2.4285714, 2.64]),
    ],
)
def test_what_becomes_of_black_and_white(stated: Any, black: list[float], white: list[float]) -> None:
    pixels = Pixels.stated(stated)
    for byte, values in ((0, black), (255, white)):
        found = pixels.normalised(torch.full((3, 1, 1), byte, dtype=torch.uint8)).flatten()
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float32), rtol=1e-6, atol=1e-6)


@pytest.fixture
def without_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of timm's are built as if their weights had come."""
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: None)


TINY: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8)}
BUILDERS: dict[str, tuple[Callable[[bool], nn.Module], str, Any]] = {
    "classifier": (lambda weights: timm_classifier("tf_mobilenetv3_small_minimal_100", pretrained=weights), "", HALVES),
    "dynamic kernels": (
        lambda weights: dynamic_kernels("mobilenetv2_050", pretrained=weights, last_blocks=1),
        "",
        IMAGENET,
    ),
    "backbone of a detector": (
        lambda weights: Features("tf_efficientnet_lite0", pretrained=weights, frozen_stages=0),
        "body",
        HALVES,
    ),
    "backbone of a segmenter": (
        lambda weights: UperNet(5, "convnext_tiny_dense", hidden_dim=8, aux_dim=6, pretrained=weights, options=TINY),
        "backbone",
        IMAGENET,
    ),
}


@pytest.mark.usefixtures("without_downloads")
@pytest.mark.parametrize("name", BUILDERS)
def test_a_network_says_what_its_weights_expect_and_from_scratch_nothing(name: str) -> None:
    build, part, look = BUILDERS[name]
    (stated,) = pixels_of(build(True)).items()
    assert stated[0] == part
    assert (stated[1]["mean"], stated[1]["std"]) == look
    assert pixels_of(build(False)) == {}


def test_a_checkpoint_of_timms_is_as_timms_weights(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint_path": str(tmp_path / "w.pth")}
    torch.save(timm.create_model("tf_mobilenetv3_small_minimal_100").state_dict(), options["checkpoint_path"])
    assert pixels_of(timm_classifier("tf_mobilenetv3_small_minimal_100", options=options))[""]["mean"] == HALVES[0]


def test_what_is_published_of_a_network() -> None:
    lite = Features("tf_efficientnet_lite0", frozen_stages=0)
    for network in (timm.create_model("tf_mobilenetv3_small_minimal_100"), lite):
        stated = of_published(network)
        assert stated is not None
        assert (stated["mean"], stated["std"]) == HALVES
    # Nobody has weights of these.
    assert of_published(timm.create_model("separable_tiny")) is None
    assert of_published(Features("narrow_resnet")) is None
    assert of_published(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())) is None


def test_what_torchvision_says_of_its_weights() -> None:
    weights = torchvision_models.EfficientNet_V2_L_Weights.IMAGENET1K_V1
    assert of_torchvision(weights.transforms()) == {
        **{"mean": HALVES[0], "std": HALVES[1], "size": (480, 480), "crop": 1.0, "interpolation": "bicubic"}
    }
    segmenter = of_torchvision(torchvision_models.segmentation.FCN_ResNet50_Weights.DEFAULT.transforms())
    assert segmenter == {"mean": IMAGENET[0], "std": IMAGENET[1]}
    assert of_torchvision(torchvision_models.detection.FCOS_ResNet50_FPN_Weights.DEFAULT.transforms()) is None
    build = torchvision_models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    assert normalises_itself(build(weights=None, weights_backbone=None))
    assert not normalises_itself(torchvision_models.resnet18())


def layout(system: str, **tensors: torch.Tensor) -> Any:
    return official.layout_of(system).pixels_of(tensors)


def test_constants_that_a_file_holds_outweigh_the_usual_ones() -> None:
    weight = torch.ones(1)
    assert layout("detectron2", w=weight)["mean"] == (103.53, 116.28, 123.675)
    mean, std = torch.tensor([123.0, 116.0, 103.0]).view(3, 1, 1), torch.full((3, 1, 1), 58.0)
    constants = {"pixel_mean": mean, "pixel_std": std}
    assert layout("detectron2", w=weight, **constants) == {
        **{"order": "rgb", "scale": 255.0, "mean": (123.0, 116.0, 103.0), "std": (58.0, 58.0, 58.0)}
    }


def test_a_layout_of_several_conventions_tells_them_by_the_weights() -> None:
    linear = {"classifier.0.linear.bias": torch.ones(100)}
    assert layout("ranet", **linear)["mean"] == (0.5071, 0.4867, 0.4408)
    assert layout("ranet", **linear, **{"FirstLayer.layers.0.0.weight": torch.ones(1)})["mean"] == IMAGENET[0]
    assert layout("ranet", **{"classifier.0.linear.bias": torch.ones(7)}) is None
    squeezed = {"blocks.1.0.se.conv_reduce.weight": torch.ones(1)}
    assert layout("condconv", **squeezed)["size"] == (224, 224)
    assert layout("condconv", **squeezed, **{"blocks.1.2.bn1.weight": torch.ones(1)})["size"] == (240, 240)
    assert layout("condconv", **{"blocks.1.2.bn1.weight": torch.ones(1)}) is None


def test_every_statement_of_a_layout_can_be() -> None:
    stated = {name: official.layout_of(name).pixels for name in official.systems()}
    # Nobody has published weights of the first two, and TRAR reads features of another network.
    assert {name for name, pixels in stated.items() if pixels is None} == {"drconv", "dynamic_conv", "trar"}
    for pixels in stated.values():
        assert callable(pixels) or pixels is None or Pixels.stated(pixels)
