"""Two-stage and dense detectors on a pyramid: published sizes, degenerate images, gradients, scaling, configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from models import official
from models.compute import count
from models.detectors.assignment import BACKGROUND, IGNORED, match, sample
from models.detectors.box_deltas import decode, encode
from models.detectors.conventions import CONVENTIONS
from models.detectors.fcos import FCOS
from models.detectors.rcnn import CascadeMaskRCNN, FasterRCNN, MaskRCNN
from models.detectors.retinanet import RetinaNet

CONVNEXT = {"backbone": "convnext_tiny", "num_classes": 80, "output_norm": True, "frozen_stages": 0}
R50 = {"backbone": "resnet50", "num_classes": 80}
TORCHVISION = {"backbone": "resnet50", "num_classes": 91, "convention": "torchvision"}
# Of ResNet-50's batch norms: weights of the published counts, constants here.
R50_NORMS = 53_120
# What torchvision predicts for the background and never reads: four deltas.
BACKGROUND_ROWS = 4 * 1025
# Network, parameters of ours, 1e9 multiply-adds at 800 x 1280.
PUBLISHED: list[tuple[Callable[..., nn.Module], dict[str, Any], int, float]] = [
    (MaskRCNN, CONVNEXT, 48_095_376, 261.90),
    (CascadeMaskRCNN, CONVNEXT, 85_930_578, 740.15),
    (RetinaNet, R50, 37_968_692 - R50_NORMS, 238.54),
    (CascadeMaskRCNN, R50 | {"box_head": "2fc", "class_agnostic": True}, 77_324_606 - R50_NORMS, 392.93),
    (FCOS, TORCHVISION, 32_322_720 - R50_NORMS, 205.03),
    (FasterRCNN, TORCHVISION | {"zero_is_background": True}, 41_808_406 - R50_NORMS - BACKGROUND_ROWS, 206.38),
]


@pytest.mark.parametrize(("network", "arguments", "params", "macs"), PUBLISHED)
def test_network_has_the_published_size(
    network: Callable[..., nn.Module], arguments: dict[str, Any], params: int, macs: float
) -> None:
    with torch.device("meta"):
        built = network(**arguments)
    report = count(built, (3, 800, 1280))
    assert report.params == params
    assert report.macs / 1e9 == pytest.approx(macs, abs=6e-3)


TINY = {
    "backbone": "resnet26",
    "num_classes": 3,
    "options": {"channels": (8, 8, 16, 16)},
    "fpn_chans": 32,
    "score_threshold": 0.0,
    "max_detections": 8,
}
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "faster": lambda **more: FasterRCNN(**TINY, fc_dim=16, **more),
    "mask": lambda **more: MaskRCNN(**TINY, fc_dim=16, **more),
    "cascade": lambda **more: CascadeMaskRCNN(**TINY, fc_dim=16, **more),
    "retinanet": lambda **more: RetinaNet(**TINY, **more),
    "fcos": lambda **more: FCOS(**TINY, **more),
}


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) * 0.1 for size in ((61, 90), (96, 50))]


def target(boxes: list[list[float]], size: tuple[int, int]) -> dict[str, Any]:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    labels = torch.arange(len(boxes)) % 3
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": labels, "masks": masks}


SCENES = {
    "objects": [[[4, 6, 40, 50], [50, 10, 88, 58]], [[0, 0, 50, 96]]],
    "one_without": [[[4, 6, 40, 50]], []],
    "none": [[], []],
    "one_pixel": [[[10, 10, 11, 11]], [[49, 95, 50, 96], [0, 0, 1, 1]]],
}


@pytest.mark.parametrize(
    ("scene", "convention"),
    [
        *((scene, "mmdet") for scene in SCENES),
        ("one_pixel", "detectron2"),
        ("none", "detectron2"),
        ("none", "torchvision"),
    ],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_are_finite_and_reach_every_parameter(name: str, scene: str, convention: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](convention=convention).train()
    boxes = SCENES[scene]
    targets = [target(b, s) for b, s in zip(boxes, ((61, 90), (96, 50)), strict=True)]
    losses = network(images(), targets)
    assert all(loss.ndim == 0 and loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for parameter_name, parameter in network.named_parameters():
        # A parameter without a gradient would stall a distributed run; a frozen one must have none.
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
        assert parameter.grad is None or parameter.grad.isfinite().all(), parameter_name
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(n.startswith(("backbone.body.conv1.", "backbone.body.layer1.")) for n in frozen)


@pytest.mark.parametrize("name", NETWORKS)
def test_detections_follow_the_contract(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    if name == "fcos":
        # As initialised, half of its boxes are empty.
        nn.init.ones_(network.head.regression_head.bbox_reg.bias)
    sizes = [(61, 90), (192, 100)]
    with torch.no_grad():
        plain = network(images())
        # Of a target an evaluation reads nothing else.
        scaled = network(images(), [target([], (61, 90)), target([], (96, 50)) | {"original_size": sizes[1]}])
    assert torch.equal(plain[0]["boxes"], scaled[0]["boxes"])
    torch.testing.assert_close(plain[1]["boxes"] * 2, scaled[1]["boxes"])
    for found, size in zip(scaled, sizes, strict=True):
        number = len(found["scores"])
        assert 0 < number <= 8
        assert found["boxes"].shape == (number, 4)
        assert (found["scores"].diff() <= 0).all()
        assert found["labels"].dtype == torch.int64
        assert found["labels"].min() >= 0
        assert found["labels"].max() < network.num_classes == 3
        assert found["boxes"][:, 0::2].max() <= size[1]
        assert found["boxes"][:, 1::2].max() <= size[0]
        assert ("masks" in found) == network.has_masks == (name in ("mask", "cascade"))
        if network.has_masks:
            assert found["masks"].shape == (number, *size)
            assert found["masks"].dtype == torch.bool


@torch.no_grad()
def test_images_are_padded_to_multiples_of_what_the_backbone_states() -> None:
    network = NETWORKS["retinanet"]().eval()
    seen: list[Tensor] = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.levels(images())
    network.backbone.size_divisor = 64
    network.levels(images())
    assert [tuple(batch.shape[-2:]) for batch in seen] == [(96, 96), (128, 128)]


@pytest.mark.parametrize("name", ["mask", "retinanet", "fcos"])
def test_nothing_found(name: str) -> None:
    network = NETWORKS[name]().eval()
    network.score_threshold = 1.0
    with torch.no_grad():
        found = network(images(), [{}, {"original_size": (7, 9)}])[1]
    assert found["boxes"].shape == (0, 4)
    assert "masks" not in found or found["masks"].shape == (0, 7, 9)


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    targets = [target(b, s) for b, s in zip(SCENES["objects"], ((61, 90), (96, 50)), strict=True)]
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images(), targets)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()


def test_boxes_stay_precise_in_half_precision() -> None:
    stage = NETWORKS["faster"]().stages()[0]
    levels = [torch.zeros(1, 2, 64 >> i, 320 >> i) for i in range(4)]
    levels[0][..., 251:] = 1
    # In bfloat16 these sides would be 1000 and 1008.
    boxes = [torch.tensor([[1001.5, 9.0, 1010.0, 17.0]])]
    exact = stage.pool(levels, boxes, 7)
    coarse = stage.pool([level.bfloat16() for level in levels], boxes, 7)
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), exact, rtol=0, atol=4e-3)


def test_training_finds_the_objects() -> None:
    torch.manual_seed(0)
    network = FasterRCNN(**TINY | {"score_threshold": 0.5, "frozen_stages": 0}, fc_dim=32).train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    scene = torch.zeros(3, 64, 96)
    scene[0, 8:40, 8:40] = 1
    scene[1, 20:60, 50:90] = 1
    truth = target([[8, 8, 40, 40], [50, 20, 90, 60]], (64, 96))
    for _ in range(60):
        optimizer.zero_grad()
        sum(network([scene], [truth]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = network.eval()([scene])[0]
    for box, label in zip(truth["boxes"], truth["labels"], strict=True):
        of_label = found["boxes"][found["labels"] == label]
        assert len(of_label)
        assert box_iou(of_label[:1], box[None]) > 0.7


def test_raw_category_ids_shift_by_the_background() -> None:
    torch.manual_seed(0)
    plain = FasterRCNN(**TINY, fc_dim=16)
    raw = FasterRCNN(**TINY | {"num_classes": 4}, fc_dim=16, zero_is_background=True)
    raw.load_state_dict(plain.state_dict())
    given = [target(boxes, size) for boxes, size in zip(SCENES["objects"], ((61, 90), (96, 50)), strict=True)]
    shifted = [one | {"labels": one["labels"] + 1} for one in given]
    for network in (plain, raw):
        network.rpn.drawn = network.roi_heads[0].drawn = 1 << 20
    losses, raw_losses = plain.train()(images(), given), raw.train()(images(), shifted)
    assert losses.keys() == raw_losses.keys()
    assert torch.stack(list(losses.values())).equal(torch.stack([raw_losses[name] for name in losses]))
    with torch.no_grad():
        found, moved = plain.eval()(images()), raw.eval()(images())
    assert torch.equal(found[0]["labels"] + 1, moved[0]["labels"])


@pytest.mark.parametrize("broken", [{"convention": "mmdetection"}, {"num_classes": 0}, {"nms_threshold": 1.5}])
def test_bad_configuration_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"mmdet, detectron2, torchvision|at least 1|between 0 and 1"):
        FasterRCNN(**TINY | broken)


def test_width_of_fcos_and_number_of_raw_classes_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        FCOS(**TINY | {"fpn_chans": 48})
    with pytest.raises(ValueError, match="unused label 0"):
        FasterRCNN(**TINY | {"num_classes": 1}, zero_is_background=True)
    with pytest.raises(ValueError, match="needs targets"):
        NETWORKS["retinanet"]().train()(images())
    with pytest.raises(ValueError, match="2fc, 4conv1fc and l1, giou"):
        FasterRCNN(**TINY, box_head="3fc")
    with pytest.raises(ValueError, match="doubling"):
        FasterRCNN(**TINY | {"options": TINY["options"] | {"output_stride": 16}})


def test_deltas_are_inverted_and_clamped() -> None:
    references = torch.tensor([[10.0, 10.0, 30.0, 20.0]])
    boxes = torch.tensor([[12.0, 5.0, 50.0, 90.0]])
    stds = (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(decode(encode(boxes, references, stds), references, True, stds), boxes)
    tiny = torch.tensor([[0.0, 0.0, -9.0, 9.0]])
    widths = [
        decode(tiny, references, clamps)[0, 2] - decode(tiny, references, clamps)[0, 0] for clamps in (True, False)
    ]
    assert widths[0].item() == pytest.approx(20 * 16 / 1000)
    assert widths[1].item() < 0.01
    assert decode(tiny, references, True)[0, 3].item() == pytest.approx(15 + 10 * 1000 / 16 / 2)


def test_low_quality_matches() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 20, 30, 30], [0, 0, 10, 9]])
    # The first object overlaps the first box most; of what overlaps the second object most, the first wants it more.
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 10]])
    assert match(boxes, objects, 0.7, 0.3).tolist() == [0, IGNORED, BACKGROUND, 0]
    assert match(boxes, objects, 0.7, 0.3, "first_choice").tolist() == [0, IGNORED, BACKGROUND, 0]
    assert match(boxes, objects, 0.7, 0.3, "every_best").tolist() == [1, IGNORED, BACKGROUND, 0]
    assert match(boxes, objects, 0.7, 0.5, "every_best").tolist() == [0, IGNORED, BACKGROUND, 0]
    assert match(boxes, torch.tensor([[90.0, 90, 99, 99]]), 0.7, 0.3, "first_choice").tolist() == [BACKGROUND] * 4
    assert match(boxes, objects[:0], 0.7, 0.3, "every_best").tolist() == [BACKGROUND] * 4


def test_sampling_fills_up_with_background() -> None:
    matches = torch.tensor([0] * 10 + [BACKGROUND] * 30 + [IGNORED] * 10)
    positive, background = sample(matches, 16, 0.25)
    assert len(positive) == 4
    assert len(background) == 12
    assert (matches[positive] >= 0).all()
    assert (matches[background] == BACKGROUND).all()
    assert [len(part) for part in sample(matches, 100, 0.25)] == [10, 30]


def test_moving_average_of_positives_is_in_the_checkpoint() -> None:
    torch.manual_seed(0)
    network = NETWORKS["retinanet"]().train()
    assert network.state_dict()["positives"] == 100
    network(images(), [target([], (61, 90)), target([], (96, 50))])
    assert network.state_dict()["positives"].item() == pytest.approx(0.9 * 100 + 0.1)
    assert "positives" not in NETWORKS["retinanet"](convention="mmdet").state_dict()
    assert NETWORKS["retinanet"](convention=replace(CONVENTIONS["mmdet"], size_major=True)).convention.size_major


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_for_other_classes_load_but_for_the_classifier(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = NETWORKS[name]().state_dict()
    monkeypatch.setitem(TINY, "num_classes", 5)
    network = NETWORKS[name]()
    fresh = official.load(network, state)
    assert fresh
    for key, value in network.state_dict().items():
        assert (key in fresh) or torch.equal(value, state[key])
