"""The detectors of DETR's family have the same steps and the same contract."""

from collections.abc import Callable

import pytest
import torch

from models.detectors.batching import pad
from models.detectors.detr_segmentation import DETRSegmentation
from models.detectors.set_detector import SetDetector
from models.distillation.seen import Watch
from tests.library import deformable_networks, dense_networks
from tests.library.dense_networks import images, targets

FAMILY: dict[str, Callable[[], SetDetector]] = {
    "detr": dense_networks.small,
    "smca": dense_networks.smca,
    "detr_segmentation": lambda: DETRSegmentation(dense_networks.small(num_levels=4, hidden_dim=128, num_heads=8)),
    "deformable_detr": deformable_networks.small,
    "two_stage": lambda: deformable_networks.small(refine=True, two_stage=True),
    "solq": deformable_networks.small_solq,
}


@pytest.fixture(params=FAMILY)
def network(request: pytest.FixtureRequest) -> SetDetector:
    return FAMILY[request.param]().eval()


@torch.no_grad()
def test_an_evaluation_reads_nothing_of_its_targets_but_the_original_size(network: SetDetector) -> None:
    plain = network(images())
    torch.testing.assert_close(network(images(), targets()), plain, rtol=0, atol=0)
    larger = network(images(), [target | {"original_size": (192, 240)} for target in targets()])
    for found, scaled, image in zip(plain, larger, images(), strict=True):
        height, width = image.shape[-2:]
        factors = torch.tensor([240 / width, 192 / height]).repeat(2)
        torch.testing.assert_close(scaled["boxes"], found["boxes"] * factors)
        assert found.keys() == {"boxes", "labels", "scores"} | ({"masks"} if network.has_masks else set())
        assert scaled["scores"].equal(found["scores"])
        if network.has_masks:
            assert scaled["masks"].shape[1:] == (192, 240)


@torch.no_grad()
def test_a_prediction_is_its_steps_in_order(network: SetDetector) -> None:
    batch = pad(images())
    decoded = network.decode(network.encode(*batch))
    every, last = network.predictions(decoded, all_layers=True), network.predictions(decoded, all_layers=False)
    torch.testing.assert_close(network.predict(*batch, all_layers=True), every)
    assert len(every.logits) == len(every.boxes) == 2
    torch.testing.assert_close((last.logits, last.boxes), (every.logits[-1:], every.boxes[-1:]))
    best = network.results(network.detections(last), last, images(), [(64, 80), (48, 64)])
    torch.testing.assert_close(best, network(images()))


def test_training_needs_targets(network: SetDetector) -> None:
    with pytest.raises(ValueError, match=f"{type(network).__name__} needs targets in training"):
        network.train()(images())


@torch.no_grad()
def test_the_encoders_maps_can_be_read_by_name(network: SetDetector) -> None:
    """They are the tokens that the decoder reads, on the cells that they are of."""
    watch = Watch(network, ["encoder_maps"])
    network(images())
    assert watch.seen is not None
    maps = watch.seen.maps(["encoder_maps"])
    encoded = network.encode(*pad(images()))
    tokens = (encoded.memory if hasattr(encoded, "memory") else encoded).tokens
    torch.testing.assert_close(torch.cat([each.flatten(2).mT for each in maps], 1), tokens)
    assert all(each.shape[2] > 0 for each in maps)
