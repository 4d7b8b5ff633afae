from typing import Any

import pytest
import torch

from models.detectors.batching import pad
from models.detectors.detr_segmentation import DETRSegmentation, binary_masks
from tests.library.dense_networks import images, small, targets

WIDE: dict[str, Any] = {"num_levels": 4, "hidden_dim": 128, "num_heads": 8}


def segmentation(freeze_detector: bool) -> DETRSegmentation:
    return DETRSegmentation(small(**WIDE), freeze_detector)


@pytest.mark.parametrize("freeze_detector", [True, False])
def test_masks_are_trained_with_the_detector_or_alone(freeze_detector: bool) -> None:
    network = segmentation(freeze_detector).train()
    losses = network(images(), targets())
    assert {"mask", "dice", "ce", "ce_0"} <= set(losses)
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in network.named_parameters():
        trained = not (freeze_detector and name.startswith("detector."))
        assert (parameter.grad is not None) == parameter.requires_grad == trained, name


def test_every_detection_has_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    network = segmentation(True).eval()
    with torch.no_grad():
        decoded = network.decode(network.encode(*pad(images())))
        assert network.masks(decoded).shape == (2, 6, 32, 40)
        # Freshly initialised, all queries have much the same mask.
        masks = torch.randn(2, 6, 32, 40)
        monkeypatch.setattr(network, "masks", lambda decoded: masks)
        first, second = network(images(), [{"original_size": (100, 150)}, {}])
        alone = network.detector(images())
        found = network.detector.detections(network.detector.predictions(decoded, all_layers=False))
    assert first["masks"].shape == (6, 100, 150)
    assert second["masks"].shape == (6, 48, 64)
    assert second["masks"].dtype == torch.bool
    assert torch.equal(second["scores"], alone[1]["scores"])
    expected = binary_masks(masks[1, found.queries[1]], (64, 80), (48, 64), (48, 64))
    assert torch.equal(second["masks"], expected)
    assert not torch.equal(second["masks"], binary_masks(masks[1], (64, 80), (48, 64), (48, 64)))


def test_masks_follow_the_image_and_not_its_padding() -> None:
    logits = torch.full((1, 4, 4), -9.0)
    logits[:, :2, :2] = 9.0
    # The image is the left half of the batch's height and width.
    assert binary_masks(logits, (16, 16), (8, 16), (4, 8)).squeeze().tolist() == [[True] * 4 + [False] * 4] * 4


def test_what_masks_need() -> None:
    with pytest.raises(ValueError, match="num_levels=4, not 1"):
        DETRSegmentation(small(hidden_dim=128))
    with pytest.raises(ValueError, match="multiple of 128, not 64"):
        DETRSegmentation(small(num_levels=4, hidden_dim=64))
    with pytest.raises(ValueError, match="needs targets with masks"):
        segmentation(True).train()(images(), [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}] * 2)
