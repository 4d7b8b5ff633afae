from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.compute import count, executed, parameter_count
from models.decisions import noted
from models.vqa import TRAR, answer_loss

TINY: dict[str, Any] = {
    "num_answers": 5,
    "vocabulary_size": 7,
    "in_chans": 6,
    "dim": 8,
    "feedforward_dim": 6,
    "num_heads": 2,
    "num_layers": 2,
    "word_dim": 4,
    "pool_dim": 3,
    "out_dim": 10,
}
VQA: dict[str, Any] = {"num_answers": 3129, "vocabulary_size": 1}
CLEVR: dict[str, Any] = {"num_answers": 28, "vocabulary_size": 1, "in_chans": 1024, "orders": (0, 1, 3)}


def batch(size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    questions = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [6, 1, 2, 3]])
    features = torch.randn(3, *size, 6, generator=generator)
    features[0, 5:] = 0
    return questions, features


@pytest.mark.parametrize(
    ("options", "side", "words", "params", "controllers", "macs"),
    [
        (VQA | {"routing": "hard", "pooling": "fc"}, 8, 14, 52_436_569, 795_678, None),
        (VQA | {"routing": "hard", "pooling": "attention"}, 8, 14, 55_594_585, 3_953_694, 1.969),
        (VQA, 16, 14, 52_433_491, 792_600, 6.752),
        (VQA | {"routing": "fixed", "orders": (0,)}, 8, 14, 51_640_891, 0, None),
        (CLEVR | {"routing": "hard", "pooling": "fc"}, 14, 43, 48_732_214, 794_136, 5.807),
    ],
)
def test_size_is_as_published(
    options: Any, side: int, words: int, params: int, controllers: int, macs: float | None
) -> None:
    with torch.device("meta"):
        network = TRAR(**options)
        questions = torch.zeros(1, words, dtype=torch.int64)
        features = torch.zeros(1, side, side, network.adapter.linear.in_features)
    layers = [layer.self_attention for layer in network.decoder]
    assert parameter_count(network) - 300 == params
    assert sum(parameter_count(layer.controller) for layer in layers) == controllers
    # Counting takes seconds, and the variants that are left out cost what they have parameters for.
    if macs is not None:
        # The published code mixes maps by a product of matrices, and takes weighted sums of tokens element by element.
        tokens = side**2
        mixing = 6 * 8 * tokens**2 * layers[0].mixing.num_spans
        sums = 512 * (words + tokens) + 512 * tokens * 6 * ("pooling" in options)
        assert (count(network, inputs=(questions, features)).macs + mixing - sums) / 1e9 == pytest.approx(
            macs, abs=5e-4
        )


@pytest.mark.parametrize("size", [(8, 8), (4, 11), (16, 5)])
def test_grids_of_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = TRAR(**TINY).eval()
    questions, features = batch(size)
    logits = network(questions, features)
    assert logits.shape == (3, 5)
    # An image does not depend on those beside it, and its answer does on the places of its cells.
    torch.testing.assert_close(network(questions[1:2], features[1:2]), logits[1:2])
    assert not torch.allclose(network(questions, features.flip(2).roll(1, 1)), logits)
    # The same state dict serves any grid.
    network.load_state_dict(TRAR(**TINY).state_dict())


@pytest.mark.parametrize("routing", ["soft", "hard", "fixed"])
@pytest.mark.parametrize("pooling", ["avg", "attention", "fc"])
def test_everything_that_is_trained_has_a_gradient(routing: Any, pooling: Any) -> None:
    torch.manual_seed(0)
    options = {} if routing == "fixed" else {"pooling": pooling}
    network = TRAR(**TINY, routing=routing, **options)
    answer_loss(network(*batch()), torch.rand(3, 5)).backward()
    still = {
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    # Softmax does not see a constant that is added to all it compares.
    assert all(name.endswith(("pool.score.bias", "pool.bias", "key.bias")) for name in still)


def test_regions_have_boxes_and_no_neighbours() -> None:
    torch.manual_seed(0)
    network = TRAR(**TINY, orders=[0], routing="fixed", box_dim=3).eval()
    questions, features = batch()
    regions, boxes = features.flatten(1, 2)[:, :10], torch.rand(3, 10, 4)
    # No cell has a place, so that their order does not matter.
    order = torch.randperm(10)
    torch.testing.assert_close(
        network(questions, regions, boxes), network(questions, regions[:, order], boxes[:, order]), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ValueError, match="boxes go with a network that has box_dim"):
        network(questions, regions)
    with pytest.raises(ValueError, match="boxes go with a network that has box_dim"):
        TRAR(**TINY)(*batch(), torch.rand(3, 64, 4))
    with pytest.raises(ValueError, match="give orders: "):
        TRAR(**TINY)(questions, regions)


def test_one_span_alone_runs_less() -> None:
    torch.manual_seed(0)
    inputs = batch((16, 16))
    mixed, alone = TRAR(**TINY, orders=(1, 2)).eval(), TRAR(**TINY, orders=(1, 2), eval_routing="argmax").eval()
    alone.load_state_dict(mixed.state_dict())
    assert executed(alone, *inputs).macs < 0.6 * executed(mixed, *inputs).macs
    chosen = {name for name, each in noted(alone).items() if each.kind != "attention"}
    assert chosen == {"decoder.0.self_attention.mixing", "decoder.1.self_attention.mixing"}


def test_half_precision_keeps_what_is_padding() -> None:
    torch.manual_seed(0)
    network = TRAR(**TINY).eval()
    questions, features = batch()
    features[1] = 0
    with torch.autocast("cpu", torch.bfloat16):
        half = network(questions, features)
    assert half.isfinite().all()
    torch.testing.assert_close(half.float(), network(questions, features), atol=0.05, rtol=0.05)


def test_losses_are_sums() -> None:
    logits, target = torch.randn(4, 5), torch.rand(4, 5)
    shares, labels = target.softmax(1), torch.tensor([0, 4, 2, 2])
    probability = logits.sigmoid()
    by_hand = -(target * probability.log() + (1 - target) * (1 - probability).log()).sum()
    torch.testing.assert_close(answer_loss(logits, target), by_hand)
    chosen = logits.softmax(1)[torch.arange(4), labels]
    torch.testing.assert_close(answer_loss(logits, labels, "ce"), -chosen.log().sum())
    torch.testing.assert_close(answer_loss(logits, labels[:, None], "ce"), -chosen.log().sum())
    divergence = (shares * (shares.log() - F.log_softmax(logits, 1))).sum()
    torch.testing.assert_close(answer_loss(logits, shares, "kld"), divergence)
    torch.testing.assert_close(answer_loss(logits, target, "mse"), (logits - target).square().sum())
