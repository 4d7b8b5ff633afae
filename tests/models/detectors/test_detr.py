from typing import Any

import pytest
import torch

from models.compute import flop_counter, parameter_count
from models.detectors.batching import pad
from models.detectors.dense_transformer import Attention, DenseTransformer
from models.detectors.detr import DETR
from models.detectors.matching import MatchCosts
from models.detectors.smca import SMCA
from tests.library.dense_networks import SMALL, images, small, smca, targets

# Parameters, those that train, buffers, entries of the state dict, multiply-adds (G) at 800 x 1333 and 640 x 640.
COSTS: dict[str, tuple[type[DETR], dict[str, Any], tuple[int, int, int, int], tuple[float, float]]] = {
    "detr_r50": (DETR, {}, (41_524_768, 41_302_368, 106_240, 458), (101.67, 38.64)),
    "detr_r50_dc5": (
        DETR,
        {"backbone_options": {"output_stride": 16}},
        (41_524_768, 41_302_368, 106_240, 458),
        (227.75, 74.69),
    ),
    "detr_r101": (DETR, {"backbone": "resnet101"}, (60_464_672, 60_242_272, 210_688, 713), (181.21, 68.94)),
    "smca_type3": (SMCA, {}, (41_760_482, 41_538_082, 106_240, 500), (104.53, 41.10)),
    "smca_type1": (SMCA, {"gaussian_scale": "type1"}, (41_735_810, 41_513_410, 106_240, 488), (104.52, 41.09)),
}


@pytest.mark.parametrize("name", COSTS)
def test_cost_is_the_published_one(name: str) -> None:
    kind, options, sizes, macs = COSTS[name]
    with torch.device("meta"):
        network = kind(**options)
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    buffers = sum(buffer.numel() for buffer in network.buffers())
    assert (parameter_count(network), trained, buffers, len(network.state_dict())) == sizes
    for size, expected in zip(((800, 1333), (640, 640)), macs, strict=True):
        # The table has the heads of all decoder layers, which only training needs.
        assert multiply_adds(network.train(), size) == pytest.approx(expected, abs=0.0051)


def test_evaluation_spares_the_heads_of_inner_layers() -> None:
    with torch.device("meta"):
        network = DETR("narrow_resnet")
    spared = multiply_adds(network.train(), (64, 64)) - multiply_adds(network.eval(), (64, 64))
    assert spared == pytest.approx(5 * 100 * (256 * (92 + 256 + 256 + 4)) / 1e9)


def multiply_adds(network: DETR, size: tuple[int, int]) -> float:
    with torch.no_grad(), flop_counter() as counter:
        network.predict(*pad([torch.empty(3, *size, device="meta")]), all_layers=network.training)
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("network", [small(), small(position_encoding="learned", pre_norm=True), smca()])
@pytest.mark.parametrize("bf16", [False, True])
def test_training_gives_losses_that_reach_every_parameter(network: DETR, bf16: bool) -> None:
    network.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = network(images(), targets())
    assert set(losses) == {"ce", "l1", "giou", "ce_0", "l1_0", "giou_0"}
    assert all(loss.dtype == torch.float32 and loss.isfinite() and loss.dim() == 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("network", [small(), smca()])
def test_images_without_objects_train(network: DETR) -> None:
    nothing = targets()[1]
    losses = network.train()(images(), [nothing, nothing])
    torch.stack(list(losses.values())).sum().backward()
    assert losses["ce"] > 0
    assert losses["l1"] == losses["giou"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("network", [small(), smca()])
def test_a_small_set_of_images_is_learned(network: DETR) -> None:
    # Dropout draws from the global generator.
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    totals = []
    for _ in range(40):
        optimizer.zero_grad()
        total = torch.stack(list(network.train()(images(), targets()).values())).sum()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]


@pytest.mark.parametrize("network", [small(), smca()])
def test_detections_are_sorted_and_in_the_pixels_asked_for(network: DETR) -> None:
    network.eval()
    with torch.no_grad():
        found = network(images())
        scaled = network(images(), [{"original_size": (640, 400)}, {}])
    for each in found:
        assert each["boxes"].shape == (6, 4)
        assert each["boxes"].dtype == each["scores"].dtype == torch.float32
        assert each["labels"].dtype == torch.int64
        assert (each["scores"].diff() <= 0).all()
    torch.testing.assert_close(scaled[0]["boxes"], found[0]["boxes"] * torch.tensor([5.0, 10.0, 5.0, 10.0]))
    assert torch.equal(scaled[1]["boxes"], found[1]["boxes"])


def test_padding_is_not_seen() -> None:
    torch.manual_seed(0)
    transformer = DenseTransformer(16, 4, 16, 2, 2).eval()
    x, position, queries = torch.randn(1, 16, 4, 5), torch.randn(1, 16, 4, 5), torch.randn(3, 16)
    padding = torch.zeros(1, 4, 5, dtype=torch.bool)
    padding[:, 3:], padding[:, :, 3:] = True, True
    memory = transformer.encode(x, position, padding)
    alone = slice(0, 3)
    cut = transformer.encode(*(each[..., alone, alone] for each in (x, position, padding)))
    torch.testing.assert_close(transformer.decode(memory, queries), transformer.decode(cut, queries))
    torch.testing.assert_close(memory.tokens[~memory.padding], cut.tokens[0])


def test_attention_is_the_weighted_mean_of_the_values() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2).eval()
    torch.nn.init.normal_(attention.in_proj_bias)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    reference.load_state_dict(attention.state_dict())
    expected, weights = reference(query, key, value, key_padding_mask=padding, average_attn_weights=False)
    torch.testing.assert_close(attention(query, key, value, padding), expected)
    torch.testing.assert_close(attention.weights(query, key, padding), weights)


@pytest.mark.parametrize("network", [small(), smca()])
def test_attention_maps_are_distributions_over_the_image(network: DETR) -> None:
    network.train()
    maps = network.attention_maps(images())
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert maps.weights.shape == (2, 2, 4, 6, 4, 5)
    torch.testing.assert_close(maps.weights.sum((-2, -1)), torch.ones(2, 2, 4, 6))
    assert maps.padding[1].any()
    assert maps.weights[:, 1].movedim((-2, -1), (0, 1))[maps.padding[1]].abs().max() == 0
    assert maps.detections.boxes.shape == (2, 6, 4)
    if isinstance(network, SMCA):
        assert maps.gaussian is not None
        assert maps.gaussian.shape == maps.weights.shape
        assert maps.gaussian.max() <= 0
    else:
        assert maps.gaussian is None


@pytest.mark.parametrize("network", [small(), smca()])
def test_the_network_compiles_as_one_graph(network: DETR) -> None:
    network.eval()
    compiled = torch.compile(
        lambda images: network.predict(*pad(images), all_layers=False), backend="eager", fullgraph=True
    )
    with torch.no_grad():
        expected, actual = network.predict(*pad(images()), all_layers=False), compiled(images())
    torch.testing.assert_close(actual.logits, expected.logits)
    torch.testing.assert_close(actual.boxes, expected.boxes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 18}, "multiple of 4"),
        ({"num_heads": 3}, "3 does not divide 16"),
        ({"position_encoding": "none"}, "one of sine, learned, not 'none'"),
        ({"num_queries": 0}, "num_queries=0"),
        ({"decoder_layers": 0}, "decoder_layers=0"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_bad_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DETR(**SMALL | changes)


def test_losses_are_weighted_as_published() -> None:
    detr, gaussian = small().criterion, smca().criterion
    assert (detr.classification, detr.no_object_weight) == ("softmax", 0.1)
    assert (detr.costs, detr.weights.ce, detr.weights.l1, detr.weights.giou) == (MatchCosts(1, 5, 2), 1, 5, 2)
    assert (gaussian.classification, gaussian.alpha) == ("focal", 0.25)
    assert (gaussian.costs, gaussian.weights.ce, gaussian.weights.l1, gaussian.weights.giou) == (
        MatchCosts(2, 5, 2),
        2,
        5,
        2,
    )
