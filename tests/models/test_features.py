"""Vectors of images from networks of every kind."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn

from models.classifiers import WideResNet, timm_classifier
from models.features import embedder_of
from models.mistakes import Mistake

SMALL = {"depths": [1, 1, 1, 1], "dims": [4, 6, 8, 10], "kernel_sizes": 3}


def features(network: nn.Module, images: Tensor) -> Tensor:
    embedder = embedder_of(network.eval())
    assert embedder is not None
    with torch.no_grad():
        return embedder(images)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_of_timms_networks_what_the_classifier_is_given(images: Tensor) -> None:
    network = timm_classifier("convnext_atto", 7, options=SMALL).eval()
    found = features(network, images)
    assert found.shape == (3, 10)
    torch.testing.assert_close(network.get_submodule("head.fc")(found), network(images))


def test_of_another_classifier_what_its_last_linear_map_is_given(images: Tensor) -> None:
    network = WideResNet(10, 1, num_classes=5, base_width=4)
    found = features(network, images)
    torch.testing.assert_close(network.head(found), network(images))
    network.head = nn.Identity()
    assert torch.equal(network(images), found)


def test_of_a_network_that_sends_images_on_ways_of_their_own(images: Tensor) -> None:
    class Ways(nn.Module):
        num_classes = 4

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, images: Tensor) -> Tensor:
            bright = images.mean((1, 2, 3)) > 0.5
            logits = images.new_empty(len(images), 4)
            for way, factor in ((bright, 1.0), (~bright, 2.0)):
                logits[way] = self.head(factor * images[way].mean((2, 3)))
            return logits

    network, images = Ways(), images * torch.tensor([0.5, 1.5, 1.4])[:, None, None, None]
    found = features(network, images)
    assert found.shape == (3, 3)
    torch.testing.assert_close(network.head(found), network(images))


@pytest.mark.parametrize("channels_last", [False, True])
def test_of_a_network_with_a_backbone_its_coarsest_map(images: Tensor, channels_last: bool) -> None:
    options = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "window_size": 2, "img_size": 32}
    name = "swin_tiny_patch4_window7_224" if channels_last else "convnext_atto"
    body = timm.create_model(name, features_only=True, **(options if channels_last else SMALL | {"out_indices": (2,)}))

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = nn.ModuleDict({"body": body})
            self.classes = nn.Linear(8, 3)

    found = features(Detector(), images)
    places = (1, 2) if channels_last else (2, 3)
    assert found.shape == (3, 16 if channels_last else 8)
    torch.testing.assert_close(found, body(images)[-1].mean(places))


def test_a_detector_of_torchvisions_normalises_its_images_itself(images: Tensor) -> None:
    class Backbone(nn.Module):
        def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
            return OrderedDict(fine=images, coarse=2 * images)

    network = nn.Module()
    network.backbone = Backbone()
    network.transform = SimpleNamespace(image_mean=[0.5], normalize=lambda image: image - 0.5)  # type: ignore[assignment]
    torch.testing.assert_close(features(network, images), 2 * (images.mean((2, 3)) - 0.5))


def test_a_convolution_has_none() -> None:
    assert embedder_of(nn.Conv2d(3, 4, 1)) is None


def test_a_classifier_of_maps_has_none(images: Tensor) -> None:
    class OfPlaces(nn.Module):
        num_classes = 2

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images.permute(0, 2, 3, 1))

    with pytest.raises(Mistake, match="OfPlaces has no features: its classifier sees no single vector of an image"):
        features(OfPlaces(), images)
