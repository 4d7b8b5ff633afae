from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from models.detectors.matching import MatchCosts, assign, generalized_iou, match_costs


def boxes(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.cat([torch.rand(*shape, 2, generator=draw), 0.05 + 0.4 * torch.rand(*shape, 2, generator=draw)], -1)


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    layers=st.integers(1, 3),
    queries=st.integers(1, 4),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_each_image_of_each_layer_is_matched_at_the_least_cost(
    counts: list[int], layers: int, queries: int, seed: int
) -> None:
    costs = torch.rand(layers, len(counts), queries, max(counts), generator=torch.Generator().manual_seed(seed))
    match = assign({"decoder": costs}, counts)["decoder"]
    assert match.images.tolist() == sorted(match.images.tolist())
    for layer in range(layers):
        for image, n in enumerate(counts):
            mine = match.images == image
            rows, columns = match.queries[layer, mine], match.targets[layer, mine] - sum(counts[:image])
            assert len(rows) == min(queries, n)
            assert len(set(rows.tolist())) == len(set(columns.tolist())) == len(rows)
            assert ((columns >= 0) & (columns < n)).all()
            block = costs[layer, image, :, :n]
            assert block[rows, columns].sum().item() == pytest.approx(cheapest(block), abs=1e-5)


def cheapest(block: Tensor) -> float:
    if block.shape[0] > block.shape[1]:
        block = block.T
    rows = range(block.shape[0])
    return min(
        sum(block[i, j].item() for i, j in zip(rows, order, strict=True))
        for order in permutations(range(block.shape[1]), block.shape[0])
    )


def test_several_costs_are_matched_as_each_by_itself() -> None:
    costs = {"decoder": torch.rand(3, 2, 5, 4), "proposals": torch.rand(1, 2, 9, 4)}
    together = assign(costs, [4, 2])
    for name, cost in costs.items():
        alone = assign({name: cost}, [4, 2])[name]
        assert all(a.equal(b) for a, b in zip(alone, together[name], strict=True))


def test_costs_of_padding_do_not_count() -> None:
    costs = torch.rand(2, 2, 5, 4)
    cheaper = costs.clone()
    cheaper[:, 1, :, 2:] = -100
    assert assign({"a": costs}, [4, 2])["a"].targets.equal(assign({"a": cheaper}, [4, 2])["a"].targets)


@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_costs_of_each_query_and_object(classification: str) -> None:
    logits, predicted = torch.randn(2, 2, 3, 4), boxes(2, 2, 3)
    labels = [torch.tensor([1]), torch.tensor([0, 2])]
    objects = [boxes(1, seed=1), boxes(2, seed=2)]
    costs = match_costs(logits, predicted, labels, objects, classification, MatchCosts(3.0, 0.7, 1.5))  # type: ignore[arg-type]
    assert costs.shape == (2, 2, 3, 2)
    for layer, image, query in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        box, scores = predicted[layer, image, query], logits[layer, image, query]
        for i, (label, wanted) in enumerate(zip(labels[image], objects[image], strict=True)):
            p = scores.sigmoid()[label]
            focal = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
            cls = focal if classification == "focal" else -scores.softmax(0)[label]
            corners = [box_convert(each[None], "cxcywh", "xyxy") for each in (box, wanted)]
            expected = 3 * cls + 0.7 * (box - wanted).abs().sum() - 1.5 * generalized_box_iou(*corners)[0, 0]
            torch.testing.assert_close(costs[layer, image, query, i], expected, rtol=1e-4, atol=1e-5)


def test_generalized_iou_is_that_of_torchvision() -> None:
    ours, others = (box_convert(boxes(2, 6, seed=seed), "cxcywh", "xyxy") for seed in (0, 1))
    ours[0, 0] = torch.tensor([0.9, 0.9, 0.9001, 0.9001])
    found = generalized_iou(ours[:, :, None], others[:, None])
    for batch in range(2):
        torch.testing.assert_close(found[batch], generalized_box_iou(ours[batch], others[batch]))


def test_costs_are_in_full_precision() -> None:
    logits, predicted, labels = torch.randn(1, 1, 3, 4), boxes(1, 1, 3), [torch.tensor([1])]
    expected = match_costs(logits, predicted, labels, [boxes(1)], "focal", MatchCosts())
    with torch.autocast("cpu", torch.bfloat16):
        assert match_costs(logits, predicted, labels, [boxes(1)], "focal", MatchCosts()).equal(expected)


def test_predictions_that_are_not_finite_are_named() -> None:
    predicted = boxes(3, 2, 4)
    predicted[1, 1, 2] = float("nan")
    labels, objects = [torch.tensor([0])] * 2, [boxes(1)] * 2
    costs = match_costs(torch.zeros(3, 2, 4, 2), predicted, labels, objects, "focal", MatchCosts())
    with pytest.raises(FloatingPointError, match="decoder, layer 1, image 1 of the batch, query 2"):
        assign({"decoder": costs}, [1, 1])


def test_without_objects_nothing_is_matched() -> None:
    labels, objects = [torch.zeros(0, dtype=torch.int64)] * 2, [torch.zeros(0, 4)] * 2
    costs = match_costs(torch.zeros(3, 2, 4, 2), boxes(3, 2, 4), labels, objects, "softmax", MatchCosts())
    match = assign({"decoder": costs}, [0, 0])["decoder"]
    assert match.images.shape == (0,)
    assert match.queries.shape == match.targets.shape == (3, 0)
