"""Blocks with dynamic granularity: what they compute, what they say it cost, and what ran."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from models.compute import count, executed, recorded
from models.decisions import noted
from models.layers import grained
from models.layers.grained import Grain, GrainedBlock, Router
from models.layers.grained_regions import Regions
from models.layers.query_attention import QueryAttention, ReducedAttention
from models.mistakes import Mistake

DIM = 12


def block_of(size: tuple[int, int], extra: int = 1, reduction: int = 0, **options: object) -> tuple[nn.Module, Regions]:
    torch.manual_seed(0)
    grain = Grain(**options)  # type: ignore[arg-type]
    attention = ReducedAttention(DIM, 3, True, reduction) if reduction else QueryAttention(DIM, 3)
    block = GrainedBlock(DIM, attention, 2.0, 0.0, grain)
    with torch.no_grad():
        # Routers that choose differently from region to region.
        block.router.gate.weight.normal_(std=5.0)
        block.router.gate.bias.zero_()
    return block, Regions(size, grain.splits, extra, torch.device("cpu"))


def tokens_of(regions: Regions, batch: int = 3) -> Tensor:
    return torch.randn(batch, regions.tokens, DIM, generator=torch.Generator().manual_seed(1))


def one_by_one(block: nn.Module, x: Tensor, choice: Tensor, regions: Regions) -> Tensor:
    """The block's equation, image by image, region by region, cell by cell."""
    results = []
    for tokens, chosen in zip(x, choice, strict=True):
        (height, width), places = regions.size, [[i] for i in range(regions.extra)]
        for row, column in torch.cartesian_prod(*map(torch.arange, chosen.shape)).tolist():
            side = regions.side // regions.splits[int(chosen[row, column])]
            for top in range(row * regions.side, min((row + 1) * regions.side, height), side):
                for left in range(column * regions.side, min((column + 1) * regions.side, width), side):
                    rows = range(top, min(top + side, height))
                    columns = range(left, min(left + side, width))
                    places.append([regions.extra + r * width + c for r in rows for c in columns])
        queries = torch.stack([tokens[place].mean(0) for place in places])[None]
        own = queries + block.attn(block.norm1(queries), block.norm1(tokens[None]), regions, None)
        own = own + block.mlp(block.norm2(own))
        y = tokens.clone()
        for place, change in zip(places, (own - queries)[0], strict=True):
            y[place] += change
        results.append(y)
    return torch.stack(results)


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "extra", "reduction", "splits"),
    [((8, 8), 1, 0, (4, 2, 1)), ((7, 5), 1, 0, (4, 2, 1)), ((3, 10), 0, 2, (4, 2, 1)), ((5, 6), 2, 0, (6, 3, 1))],
)
def test_every_map_is_computed_by_the_equation(
    size: tuple[int, int], extra: int, reduction: int, splits: tuple[int, ...]
) -> None:
    block, regions = block_of(size, extra, reduction, splits=splits)
    x = tokens_of(regions)
    y = block.eval()(x, regions)
    choice = noted(block)[""].values
    assert choice.unique().numel() > 1
    torch.testing.assert_close(y, one_by_one(block, x, choice, regions))
    # Static shapes, which a compiled network needs, give the same.
    with patch.object(torch.compiler, "is_compiling", lambda: True):
        torch.testing.assert_close(block(x, regions), y)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch() -> None:
    block, regions = block_of((8, 12))
    x = tokens_of(regions, 4)
    together = block.eval()(x, regions)
    assert recorded(block)[""].expected.unique().numel() > 1
    torch.testing.assert_close(torch.cat([block(each[None], regions) for each in x]), together)


class OnMap(nn.Module):
    def __init__(self, block: nn.Module, regions: Regions) -> None:
        super().__init__()
        self.block, self.regions = block, regions

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.regions)


@pytest.mark.parametrize("reduction", [0, 2])
def test_what_is_recorded_is_what_runs(reduction: int) -> None:
    block, regions = block_of((7, 9), 0 if reduction else 1, reduction, formula="exact")
    network, x = OnMap(block, regions), tokens_of(regions, 1)
    ran = executed(network, x).macs
    cost = recorded(block)[""]
    assert cost.least < ran < cost.dense
    assert cost.expected.tolist() == [pytest.approx(ran)]
    assert count(network, inputs=(x,)).macs == pytest.approx(cost.dense)
    with torch.no_grad():
        for scores, bound in (((9.0, 0.0, 0.0), cost.dense), ((0.0, 0.0, 9.0), cost.least)):
            block.router.gate.weight.zero_()
            block.router.gate.bias.copy_(torch.tensor(scores))
            assert executed(network, x).macs == pytest.approx(bound)


def test_padding_costs_less_than_the_longest_image_of_all() -> None:
    """Only attention's product is filled up to the most queries of a batch."""
    block, regions = block_of((8, 8), formula="exact")
    x = tokens_of(regions, 4)
    ran = executed(OnMap(block, regions), x)
    cost = recorded(block)[""]
    padded = ran.matmul_macs - 2 * regions.tokens * DIM * regions.queries(_hard(noted(block)[""].values)).mean().item()
    assert padded > 0
    assert ran.macs - padded == pytest.approx(cost.expected.mean().item())


def _hard(choice: Tensor) -> Tensor:
    return nn.functional.one_hot(choice, 3).float()


def test_dense_and_sparse_training_differ_in_the_routers_gradient_only() -> None:
    gradients, outputs = [], []
    for sparse in (False, True):
        block, regions = block_of((8, 6), sparse_train=sparse)
        x = tokens_of(regions).requires_grad_()
        torch.manual_seed(2)
        y = block.train()(x, regions)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in block.named_parameters()})
        outputs.append(y)
    torch.testing.assert_close(*outputs)
    for name in gradients[0]:
        if "router" not in name:
            torch.testing.assert_close(gradients[0][name], gradients[1][name], msg=name)
    assert not torch.allclose(gradients[0]["router.gate.bias"], gradients[1]["router.gate.bias"])


def test_a_budget_sees_the_choice_that_it_is_told_to() -> None:
    seen = {}
    for gate in ("sampled", "noise_free"):
        block, regions = block_of((16, 16), budget_gate=gate)
        x = tokens_of(regions, 2)
        with torch.no_grad():
            block.eval()(x, regions)
            evaluated = recorded(block)[""].expected
        torch.manual_seed(3)
        block.train()(x, regions)
        seen[gate] = recorded(block)[""].expected
        seen[gate].sum().backward()
        assert block.router.gate.weight.grad.abs().sum() > 0
        assert torch.equal(seen[gate], evaluated) == (gate == "noise_free")


def test_stochastic_depth_drops_queries_or_samples() -> None:
    x = torch.ones(6, 50, DIM)
    for unit, kinds in (("query", 2), ("sample", 1)):
        block = GrainedBlock(DIM, QueryAttention(DIM, 3), 2.0, 0.5, Grain(drop_path_unit=unit)).train()
        torch.manual_seed(0)
        dropped = block._drop(x, None)
        assert sorted(dropped.unique().tolist()) == [0.0, 2.0]
        assert dropped[0].unique().numel() == kinds
        assert torch.equal(block.eval()._drop(x, None), x)


def test_routers_begin_at_the_finest() -> None:
    for splits in ((4, 2, 1), (2, 1)):
        router = Router(DIM, splits)
        assert router.gate.bias.softmax(0)[0].item() == pytest.approx(0.95)
        assert router.gate.weight.std().item() < 0.02
    assert Router(DIM, (4,)).gate.bias.item() == 0


def test_half_precision_decides_in_float32() -> None:
    block, regions = block_of((8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        y = block.train()(tokens_of(regions), regions)
        assert recorded(block)[""].expected.dtype == torch.float32
        assert y.dtype == torch.float32
    noise = grained.gumbel_noise(torch.rand(4))
    assert noise.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": (1, 2, 4)}, "finest first"),
        ({"splits": (4, 3, 1)}, "divides the first"),
        ({"formula": "paper"}, "formula='paper'"),
        ({"budget_gate": "none"}, "budget_gate='none'"),
        ({"drop_path_unit": "token"}, "drop_path_unit='token'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(Mistake, match=message):
        Grain(**options)  # type: ignore[arg-type]


def test_weights_of_other_splits_are_refused() -> None:
    with pytest.raises(Mistake, match=r"chose from \[4, 2, 1\], the network from \[8, 2, 1\]"):
        Router(DIM, (8, 2, 1)).load_state_dict(Router(DIM, (4, 2, 1)).state_dict())


@torch.no_grad()
def test_choices_can_be_dealt_to_other_regions() -> None:
    routed, regions = block_of((12, 16))
    dealt, _ = block_of((12, 16), shuffled=True)
    dealt.load_state_dict(routed.state_dict())
    x = tokens_of(regions)
    results = [block.eval()(x, regions) for block in (routed, dealt, dealt)]
    assert torch.equal(results[1], results[2])
    first, second = (noted(block)[""].values.flatten(1) for block in (routed, dealt))
    assert torch.equal(first.sort(1).values, second.sort(1).values)
    assert not torch.equal(first, second)
    torch.testing.assert_close(results[1], one_by_one(dealt, x, second.view(3, 3, 4), regions))
    assert torch.equal(recorded(dealt)[""].expected, recorded(routed)[""].expected)
