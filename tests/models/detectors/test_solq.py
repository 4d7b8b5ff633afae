from typing import Any

import pytest
import torch

from models.detectors.predictions import Predictions
from models.detectors.solq import SOLQ
from tests.library.deformable_networks import small, small_solq
from tests.library.dense_networks import images, targets
from tests.library.detector_costs import giga_macs

SWIN = {"backbone": "swin_large_dense", "frozen_stages": 0}
# Parameters, those that train, multiply-adds in billions at 800 x 1333: of the official modules.
MEASURED = [
    ({}, 54_193_660, 53_971_260, 286.15),
    ({"hidden_dim": 256}, 42_424_828, 42_202_428, 207.03),
    ({"backbone": "resnet101"}, 73_133_564, 72_911_164, 365.70),
    (SWIN, 223_622_992, 223_622_992, 961.02),
]


@pytest.mark.parametrize(("options", "total", "trained", "large"), MEASURED)
def test_measured_cost(options: dict[str, Any], total: int, trained: int, large: float) -> None:
    with torch.device("meta"):
        network = SOLQ(**options)
    assert sum(p.numel() for p in network.parameters()) == total
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == trained
    assert giga_macs(network, 800, 1333) == pytest.approx(large, abs=0.006)


def test_every_trained_parameter_has_a_gradient_without_objects_too() -> None:
    network = small_solq().train()
    empty = [{**target, **{key: target[key][:0] for key in ("boxes", "labels", "masks")}} for target in targets()]
    for data in (targets(), empty):
        network.zero_grad()
        losses = network(images(), data)
        assert {"vector", "vector_0", "ce", "giou_0"} <= losses.keys()
        torch.stack(list(losses.values())).sum().backward()
        assert not [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]


def test_targets_are_codes_of_masks_in_their_boxes() -> None:
    network = small_solq(num_coefficients=256)
    first, second = network.set_targets(targets(), images())
    assert second.vectors is not None
    assert second.vectors.shape == (0, 256)
    # The masks fill their boxes: one coefficient, the area divided by the side.
    assert first.vectors is not None
    torch.testing.assert_close(first.vectors[:, 0], torch.full((2,), 16.0))
    assert first.vectors[:, 1:].abs().max() < 1e-4


def test_masks_of_exact_predictions_are_the_objects() -> None:
    network = small_solq(num_coefficients=400, mask_size=32, num_detections=3).eval()
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    discs = torch.stack(
        [(rows - y).square() + (columns - x).square() <= r * r for x, y, r in ((20, 30, 15), (60, 25, 12))]
    )
    boxes = torch.tensor([[5.0, 15.0, 36.0, 46.0], [48.0, 13.0, 73.0, 38.0]])
    data = [{"boxes": boxes, "labels": torch.tensor([3, 1]), "masks": discs}]
    (target,) = network.set_targets(data, images()[:1])
    assert target.vectors is not None
    logits = torch.full((1, 1, 2, 5), -9.0)
    logits[0, 0, 0, 3], logits[0, 0, 0, 2], logits[0, 0, 1, 1] = 3.0, 1.0, 2.0
    predictions = Predictions(logits, target.boxes[None, None], target.vectors[None, None])
    best = network.detections(predictions)
    (found,) = network.results(best, predictions, images()[:1], [(64, 80)])
    torch.testing.assert_close(found["boxes"], boxes[[0, 1, 0]])
    assert found["labels"].tolist() == [3, 1, 2]
    assert found["masks"].dtype == torch.bool
    for mask, disc in zip(found["masks"], discs[[0, 1, 0]], strict=True):
        assert (mask & disc).sum() / (mask | disc).sum() > 0.95
    (twice,) = network.results(best, predictions, images()[:1], [(128, 160)])
    assert twice["masks"].shape == (3, 128, 160)
    assert (twice["masks"][:, ::2, ::2] == found["masks"]).float().mean() > 0.98


def test_each_kept_query_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, decoded = small_solq(num_detections=20).eval(), []
    decode = network.mask_code.masks
    monkeypatch.setattr(network.mask_code, "masks", lambda vectors: decoded.append(len(vectors)) or decode(vectors))
    with torch.no_grad():
        found = network(images(), [{"original_size": (100, 90)}, {}])
    # Twenty pairs of six queries and five classes.
    assert len(decoded) == 2
    assert max(decoded) <= 6
    assert [tuple(each["masks"].shape) for each in found] == [(20, 100, 90), (20, 48, 64)]


def test_vector_head_is_one_and_starts_as_published() -> None:
    network = small_solq()
    last = network.vector_embed.layers[-1]
    assert (last.weight == 0).all()
    assert last.bias.tolist() == [0.0, 0.0] + [-2.0] * 10
    assert network.vectors(torch.randn(2, 1, 6, 16)).shape == (2, 1, 6, 12)


def test_without_its_vectors_it_is_deformable_detr_with_refinement() -> None:
    ours = {name: value for name, value in small_solq().state_dict().items() if not name.startswith("vector_embed")}
    theirs = small(refine=True).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="coefficients"):
        small_solq(num_coefficients=257)
