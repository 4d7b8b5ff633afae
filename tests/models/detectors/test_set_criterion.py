from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.detectors.matching import MatchCosts
from models.detectors.predictions import Predictions
from models.detectors.set_criterion import LossWeights, SetCriterion, SetTarget, relative_targets
from tests.library.processes import averaged, on_two_processes

NAMES = ["ce", "l1", "giou", "vector"]


def criterion(classification: Any = "focal", **options: Any) -> SetCriterion:
    return SetCriterion(5, classification, MatchCosts(), LossWeights(), **options)


def predictions(layers: int = 3, images: int = 2, queries: int = 6, classes: int = 5, seed: int = 0) -> Predictions:
    draw = torch.Generator().manual_seed(seed)
    shape = layers, images, queries
    boxes = 0.1 + 0.4 * torch.rand(*shape, 4, generator=draw)
    logits, vectors = (torch.randn(*shape, width, generator=draw) for width in (classes, 7))
    return Predictions(*(each.requires_grad_() for each in (logits, boxes, vectors)))


def objects(*counts: int, seed: int = 1) -> list[SetTarget]:
    draw = torch.Generator().manual_seed(seed)
    return [
        SetTarget(
            torch.randint(5, (n,), generator=draw),
            0.1 + 0.4 * torch.rand(n, 4, generator=draw),
            torch.randn(n, 7, generator=draw),
        )
        for n in counts
    ]


def tensors(found: Predictions) -> list[Tensor]:
    assert found.vectors is not None
    return [found.logits, found.boxes, found.vectors]


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_layers_are_matched_and_counted_by_themselves(classification: str) -> None:
    found = predictions(classes=6 if classification == "softmax" else 5)
    targets = objects(2, 3)
    together = criterion(classification)(found, targets)
    assert sorted(together) == sorted(f"{name}{end}" for name in NAMES for end in ("", "_0", "_1"))
    for layer, end in enumerate(["_0", "_1", ""]):
        alone = criterion(classification)(Predictions(*(each[layer : layer + 1] for each in tensors(found))), targets)
        for name in NAMES:
            torch.testing.assert_close(together[name + end], alone[name])


def test_a_perfect_prediction_costs_nothing() -> None:
    targets = objects(4, 4)
    labels, boxes = torch.stack([each.labels for each in targets]), torch.stack([each.boxes for each in targets])
    logits = torch.where(torch.nn.functional.one_hot(labels, 5).bool(), 30.0, -30.0)
    vectors = torch.stack([each.vectors for each in targets if each.vectors is not None])
    losses = criterion()(Predictions(logits[None], boxes[None], vectors[None]), targets)
    assert all(value.item() == pytest.approx(0, abs=1e-5) for value in losses.values())


@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_without_objects_every_head_still_has_a_gradient(classification: str) -> None:
    found = predictions(classes=6 if classification == "softmax" else 5)
    losses = criterion(classification)(found, objects(0, 0))
    assert losses["l1"] == losses["giou"] == losses["vector"] == 0
    assert losses["ce"] > 0
    total(losses).backward()
    for each in tensors(found):
        assert each.grad is not None
        assert each.grad.isfinite().all()


def test_an_image_without_objects_has_a_class_loss_only() -> None:
    found = predictions()
    total(criterion()(found, objects(0, 3))).backward()
    logits, boxes = found.logits.grad, found.boxes.grad
    assert logits is not None
    assert boxes is not None
    assert (logits[:, 0] != 0).all()
    assert (boxes[:, 0] == 0).all()
    assert (boxes[:, 1] != 0).any()


def test_the_losses_are_means_over_the_objects() -> None:
    found, (target,) = predictions(images=1), objects(1)
    one = criterion()(found, [target])
    two = criterion()(Predictions(*(each.repeat_interleave(2, 1) for each in tensors(found))), [target, target])
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def test_more_objects_than_queries() -> None:
    losses = criterion()(predictions(queries=2), objects(5, 1))
    assert all(value.isfinite() for value in losses.values())


def test_codes_by_sum_and_from_a_layer_on() -> None:
    found, targets = predictions(), objects(2, 3)
    mean, summed = criterion()(found, targets), criterion(vector_reduction="sum", vector_start=1)(found, targets)
    assert "vector_0" not in summed
    for name in ("vector", "vector_1"):
        torch.testing.assert_close(summed[name], mean[name] * 7)
    assert "vector" in criterion(vector_start=9)(found, targets)


def test_proposals_are_of_no_class() -> None:
    found, proposals = predictions(), predictions(layers=1, queries=9, seed=2)._replace(vectors=None)
    losses = criterion()(found, objects(2, 3), proposals)
    relabelled = [each._replace(labels=torch.zeros_like(each.labels)) for each in objects(2, 3)]
    alone = criterion()(proposals, relabelled)
    for name in ("ce", "l1", "giou"):
        torch.testing.assert_close(losses[f"{name}_enc"], alone[name])
    assert "vector_enc" not in losses


def test_masks_are_compared_at_their_own_resolution() -> None:
    sizes = [(12, 9), (8, 16)]
    masks = [torch.rand(2, *size, generator=torch.Generator().manual_seed(3)) > 0.5 for size in sizes]
    targets = [each._replace(masks=mask) for each, mask in zip(objects(2, 2), masks, strict=True)]
    found = predictions(layers=1, queries=2)
    logits = torch.zeros(2, 2, 12, 16).requires_grad_()
    losses = criterion()(found._replace(masks=logits), targets)
    # Of probabilities of one half: 0.25 * log 2 for each pixel, by alpha; counts of pixels for dice.
    area = torch.cat([mask.sum((1, 2)) for mask in masks])
    share = area / (12 * 16)
    focal = 0.25 * torch.tensor(2.0).log() * (0.25 * share + 0.75 * (1 - share))
    torch.testing.assert_close(losses["mask"], focal.mean())
    torch.testing.assert_close(losses["dice"], (1 - (area + 1) / (12 * 16 / 2 + area + 1)).mean())
    losses["dice"].backward()
    assert logits.grad is not None
    empty = [each._replace(masks=mask[:0]) for each, mask in zip(objects(0, 0), masks, strict=True)]
    nothing = criterion()(found._replace(masks=logits), empty)
    assert nothing["mask"] == nothing["dice"] == 0


def test_losses_are_in_full_precision() -> None:
    found, targets = predictions(), objects(2, 3)
    expected = criterion()(found, targets)
    with torch.autocast("cpu", torch.bfloat16):
        for name, value in criterion()(found, targets).items():
            assert value.equal(expected[name])
        halved = criterion()(Predictions(*(each.bfloat16() for each in tensors(found))), targets)
    assert all(value.dtype == torch.float32 for value in halved.values())


class Waits(TorchDispatchMode):
    """Notes operators whose result the host has to wait for, which would stall an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"):
            self.seen.append(str(func))
        return func(*args, **kwargs or {})


def test_the_host_waits_for_nothing_but_the_costs() -> None:
    found, targets = predictions(), objects(2, 3)
    proposals = predictions(layers=1, queries=9)._replace(vectors=None)
    with Waits() as waits:
        total(criterion()(found, targets, proposals)).backward()
    assert waits.seen == []


def test_boxes_relative_to_their_own_image() -> None:
    images = [torch.zeros(3, 20, 40), torch.zeros(3, 10, 10)]
    boxes = [torch.tensor([[10.0, 5, 30, 15]]), torch.zeros(0, 4)]
    labels = [torch.tensor([3]), torch.zeros(0, dtype=torch.int64)]
    found = relative_targets([{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)], images)
    torch.testing.assert_close(found[0].boxes, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    assert found[0].labels.equal(labels[0])
    assert found[1].boxes.shape == (0, 4)
    assert boxes[0].tolist() == [[10, 5, 30, 15]]


def test_targets_have_what_is_predicted() -> None:
    with pytest.raises(ValueError, match="predicts vectors"):
        criterion()(predictions(), [each._replace(vectors=None) for each in objects(1, 1)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classification": "sigmoid"}, "focal, softmax"),
        ({"vector_reduction": "max"}, "mean, sum"),
        ({"vector_start": -1}, "vector_start=-1"),
        ({"alpha": 2.0}, "alpha=2.0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        criterion(**options)


def test_two_processes_divide_by_what_both_have(tmp_path: Path) -> None:
    # The mean over the processes, which DDP takes, is then the loss of one process with all images; one has no object.
    def losses(images: slice) -> dict[str, Tensor]:
        found = {}
        for kind in ("focal", "softmax"):
            everything = tensors(predictions(classes=6 if kind == "softmax" else 5))
            mine = Predictions(*(each[:, images] for each in everything))
            for reduction in ("mean", "sum"):
                terms = criterion(kind, vector_reduction=reduction)(mine, objects(5, 0)[images])
                found |= {f"{kind} {reduction} {name}": value for name, value in terms.items()}
        return found

    two = averaged(on_two_processes(lambda rank: losses(slice(rank, rank + 1)), tmp_path))
    for name, value in losses(slice(None)).items():
        torch.testing.assert_close(two[name], value.detach())
