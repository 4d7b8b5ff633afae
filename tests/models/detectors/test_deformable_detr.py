import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.detectors.batching import pad
from models.detectors.deformable_detr import DeformableDETR
from models.detectors.deformable_transformer import BoxHead, token_centres, valid_ratio
from models.layers.deformable_attention import Levels
from models.official import load
from tests.library.deformable_networks import VARIANTS, small
from tests.library.dense_networks import images, targets
from tests.library.detector_costs import giga_macs

DC5 = {"num_levels": 1, "backbone_options": {"output_stride": 16}}
# Parameters, those that train, multiply-adds in billions at 800 x 1333 and at 640 x 640: of the official modules.
MEASURED = [
    ({"num_levels": 1}, 34_066_593, 33_844_193, 94.71, 37.50),
    (DC5, 34_066_593, 33_844_193, 155.87, 60.80),
    ({}, 40_069_665, 39_847_265, 203.96, 79.35),
    ({"refine": True}, 40_849_660, 40_627_260, 204.20, 79.59),
    ({"refine": True, "two_stage": True}, 41_181_529, 40_959_129, 209.19, 81.54),
]


@pytest.mark.parametrize(("options", "total", "trained", "large", "square"), MEASURED)
def test_measured_cost(options: dict[str, Any], total: int, trained: int, large: float, square: float) -> None:
    with torch.device("meta"):
        network = DeformableDETR(**options)
    assert sum(p.numel() for p in network.parameters()) == total
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == trained
    assert giga_macs(network, 800, 1333) == pytest.approx(large, abs=0.006)
    assert giga_macs(network, 640, 640) == pytest.approx(square, abs=0.006)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_trained_parameter_has_a_gradient_without_objects_too(name: str) -> None:
    network = small(**VARIANTS[name]).train()
    empty = [{**target, "boxes": target["boxes"][:0], "labels": target["labels"][:0]} for target in targets()]
    for data in (targets(), empty):
        network.zero_grad()
        losses = network(images(), data)
        assert {"ce", "l1", "giou", "ce_0", "l1_0", "giou_0"} <= losses.keys()
        assert ("giou_enc" in losses) == (name == "two_stage")
        torch.stack(list(losses.values())).sum().backward()
        assert not [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not any(p.requires_grad for p in network.backbone.body.layer1.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_detections(name: str) -> None:
    network = small(**VARIANTS[name], num_detections=7).eval()
    nn.init.normal_(network.class_embed[-1].weight)
    with torch.no_grad():
        here = network(images())
        there = network(images(), [{"original_size": (128, 240)}, {}])
    for found in here:
        assert {key: tuple(x.shape) for key, x in found.items()} == {"boxes": (7, 4), "labels": (7,), "scores": (7,)}
        assert (found["scores"].diff() <= 0).all()
        assert ((found["labels"] >= 0) & (found["labels"] < 5)).all()
    # Of 64 x 80 pixels: twice as high, three times as wide.
    torch.testing.assert_close(there[0]["boxes"], here[0]["boxes"] * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    torch.testing.assert_close(there[1], here[1])


def test_an_evaluation_runs_the_heads_of_the_last_layer() -> None:
    for options, boxes in (({}, 1), ({"refine": True}, 2)):
        network = small(**options).eval()
        calls: list[str] = []
        for kind in ("class_embed", "bbox_embed"):
            for head in getattr(network, kind):
                head.register_forward_hook(lambda *_, kind=kind, calls=calls: calls.append(kind))
        network(images())
        assert calls.count("class_embed") == 1
        assert calls.count("bbox_embed") == boxes


def test_first_values_are_the_published_ones() -> None:
    for options in VARIANTS.values():
        network = small(**options)
        for head in network.class_embed:
            torch.testing.assert_close(head.bias, torch.full((5,), -math.log(99)))
        for i, head in enumerate(network.bbox_embed):
            assert (head.layers[-1].weight == 0).all()
            wide = 0.0 if "two_stage" in options or i else -2.0
            assert head.layers[-1].bias.tolist() == [0.0, 0.0, wide, wide]
    names = [name for name, _ in small().named_parameters()]
    for part, count in (("reference_points", 2), ("sampling_offsets", 2 * 3)):
        assert sum(part in name for name in names) == count


def test_no_gradient_through_the_boxes_that_a_layer_looks_around() -> None:
    network = small(refine=True)
    memory = network.encode(*pad(images()))
    queries, _ = network.queries(memory)
    _, boxes = network.transformer.decode(memory, queries, network.bbox_embed)
    own, earlier = torch.autograd.grad(
        boxes[1].sum(), [head.layers[-1].bias for head in network.bbox_embed][::-1], allow_unused=True
    )
    assert own.abs().sum() > 0
    assert earlier is None


def test_proposals_come_from_tokens_of_the_image() -> None:
    network = small(refine=True, two_stage=True)
    memory = network.encode(*pad(images()))
    proposals = network.proposals(memory)
    padded = memory.padding[1]
    assert padded.any()
    assert (proposals.boxes[1, padded] == 1).all()
    assert (proposals.boxes[1, ~padded] < 1).any(-1).sum() > len(proposals.chosen[1])
    centres = token_centres(memory.levels, memory.valid_ratios)
    middle = proposals.boxes[0, 44]
    torch.testing.assert_close(middle[:2], centres[0, 44])
    torch.testing.assert_close(middle[2:], torch.full((2,), 0.05))
    few = small(refine=True, two_stage=True, num_queries=10_000)
    predictions = few.predict(*pad(images()), all_layers=False)
    assert predictions.logits.shape[2] == memory.tokens.shape[1]


def test_centres_are_relative_to_the_image_without_padding() -> None:
    padding = torch.tensor([[[False, False, True, True], [False, False, True, True], [True] * 4]])
    ratio = valid_ratio(padding)
    torch.testing.assert_close(ratio, torch.tensor([[1 / 2, 2 / 3]]))
    centres = token_centres(Levels.of([(3, 4)], padding.device), ratio[:, None]).unflatten(1, (3, 4))
    torch.testing.assert_close(centres[0, 0, :, 0], torch.tensor([0.25, 0.75, 1.25, 1.75]))
    torch.testing.assert_close(centres[0, :, 0, 1], torch.tensor([0.25, 0.75, 1.25]))


def test_a_box_head_corrects_its_reference() -> None:
    head = BoxHead(4)
    nn.init.zeros_(head.layers[-1].weight)
    nn.init.zeros_(head.layers[-1].bias)
    x = torch.randn(3, 4)
    boxes, points = torch.rand(3, 4) * 0.8 + 0.1, torch.rand(3, 2) * 0.8 + 0.1
    torch.testing.assert_close(head(x, boxes), boxes)
    torch.testing.assert_close(head(x, points), torch.cat([points, torch.full((3, 2), 0.5)], 1))
    ends = torch.tensor([[0.0, 1.0]], requires_grad=True)
    head(x[:1], ends).sum().backward()
    assert ends.grad is not None
    assert ends.grad.isfinite().all()


def test_sampling_points_of_a_query() -> None:
    network, image = small(refine=True).train(), images()[0]
    points = network.sampling_points(image, query=4)
    assert points.locations.shape == (2, 4, 4, 3, 2)
    torch.testing.assert_close(points.weights.sum((-1, -2)), torch.ones(2, 4))
    assert network.training
    assert not any(layer.cross_attention._forward_hooks for layer in network.transformer.decoder)
    # The first layer samples around the learned point, in a star that is symmetric in the first network.
    queries, _ = network.queries(network.encode(*pad([image])))
    middle = points.locations[0].mean((0, 2))
    torch.testing.assert_close(middle, queries.references[0, 4].expand(4, -1), rtol=0, atol=1e-4)


def test_autocast_keeps_boxes_and_losses_exact() -> None:
    network = small(refine=True, two_stage=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images(), targets())
        predictions = network.predict(*pad(images()), all_layers=True)
    assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())
    assert predictions.boxes.dtype == predictions.logits.dtype == torch.float32


def test_fine_tuning_for_other_classes_loads_all_but_the_classifiers() -> None:
    for options in VARIANTS.values():
        source, network = small(**options), small(**options, num_classes=3)
        nn.init.normal_(source.transformer.level_embed)
        dropped = load(network, source.state_dict())
        assert dropped
        assert all("class_embed" in name for name in dropped)
        torch.testing.assert_close(network.transformer.level_embed, source.transformer.level_embed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_groups": 3}, "hidden_dim must be a multiple of 4 and of norm_groups=3, not 16"),
        ({"two_stage": True}, "two_stage goes with refine=True"),
        ({"num_levels": 0}, "num_levels, .* are at least 1, not 0"),
        ({"num_heads": 3}, "num_heads must divide hidden_dim"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_padding_of_the_batch_changes_no_reference() -> None:
    network: DeformableDETR = small().eval()
    alone: Tensor = network.queries(network.encode(*pad(images()[1:])))[0].references
    together = network.queries(network.encode(*pad(images())))[0].references
    torch.testing.assert_close(together[1:], alone)
