from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from models.classifiers import routed_spans
from models.classifiers.routed_spans import route_spans
from models.compute import executed, expected, static_macs
from models.decisions import noted
from models.layers.routed_attention import PathController
from models.layers.spans import SpanMasks, attend_in_window, attention_maps, scores
from models.mistakes import Mistake
from models.official.loading import absent_parts

TINY = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("deit_tiny_patch16_224", {"img_size": (36, 28)}),
    "registers, norms and gates": (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 36, "qk_norm": True, "scale_attn_norm": True, "init_values": 0.5, "dynamic_img_size": True},
    ),
    "no class token": (
        "vit_tiny_patch16_224",
        {"img_size": 36, "class_token": False, "global_pool": "avg", "dynamic_img_size": True, "dynamic_img_pad": True},
    ),
}


def host(kind: str = "class token") -> Any:
    torch.manual_seed(0)
    name, options = HOSTS[kind]
    return timm.create_model(name, num_classes=3, **{**TINY, **options}).eval()


def images(size: tuple[int, int] = (36, 28), batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def routed(orders: Sequence[int] = (0, 1, 2), kind: str = "class token", **options: Any) -> Any:
    network = host(kind)
    torch.manual_seed(1)
    assert route_spans(network, orders, **options) == ["blocks.0.attn", "blocks.1.attn"]
    return network


def controllers(network: nn.Module) -> list[PathController]:
    return [module for module in network.modules() if isinstance(module, PathController)]


def sharpen(network: nn.Module) -> None:
    """Lets path controllers say of images what differs."""
    for controller in controllers(network):
        nn.init.normal_(controller.reduce.weight, std=5.0)
        nn.init.normal_(controller.score.weight, std=5.0)


@pytest.mark.parametrize(("size", "order", "prefix"), [((8, 8), 1, 1), ((9, 7), 2, 5), ((4, 13), 1, 2)])
def test_tokens_before_the_grid_look_at_all_and_all_look_at_them(
    size: tuple[int, int], order: int, prefix: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = prefix + size[0] * size[1]
    q, k, v = (torch.randn(2, 2, tokens, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    spans = SpanMasks([order], prefix)(size, None)
    blocked = spans.blocked[0]
    assert blocked is not None
    assert not blocked[:prefix].any()
    assert not blocked[:, :prefix].any()
    # A corner sees what is before the grid, and its window.
    assert (~blocked[prefix]).sum() == prefix + (order + 1) ** 2
    whole = attention_maps(scores(q, k), blocked) @ v
    torch.testing.assert_close(attend_in_window(q, k, v, size, order, None, prefix), whole)
    torch.testing.assert_close(spans.attend(0, q, k, v, None), whole)


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("routing", ["fixed", "hard"])
def test_the_whole_grid_alone_is_the_host(kind: str, routing: Any) -> None:
    plain, network, seen = host(kind), routed([0], kind, routing=routing), images()
    assert torch.equal(network(seen), plain(seen))
    plain.train()
    network.train()
    torch.testing.assert_close(network(seen), plain(seen), rtol=1e-6, atol=1e-6)
    # Every weight of the host is there, by its name; a training may begin without those of the controllers.
    fresh = network.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() <= network.state_dict().keys()
    assert bool(fresh) == (routing != "fixed")
    if fresh:
        assert all(".attn.controller." in name for name in fresh)
        absent = absent_parts(network, plain.state_dict())
        assert [set(names) for names in absent.values()] == [fresh]


@pytest.mark.parametrize("size", [(36, 28), (17, 45)])
def test_images_of_any_size_that_the_host_takes(size: tuple[int, int]) -> None:
    """Cut into patches of 4 pixels, the last ones filled up."""
    network = routed(kind="no class token", eval_routing="argmax", routing="hard")
    sharpen(network)
    network(images(size))
    shares = noted(network)["blocks.1.attn.mixing"]
    assert shares.names == ("global", "3x3", "5x5")
    grid = [-(-side // 4) for side in size]
    assert network.blocks[0].attn.grid.size == tuple(grid)
    # One span alone is the mixture of a one and zeros.
    single = network(images(size))
    for block in network.blocks:
        block.attn.mixing.single = False
    torch.testing.assert_close(network(images(size)), single, rtol=1e-5, atol=1e-6)


def test_a_single_span_is_computed_alone_and_costs_what_is_recorded() -> None:
    network, seen = routed(routing="hard", binarize=True), images()
    sharpen(network)
    static = static_macs(network, (3, 36, 28))
    report = executed(network, seen)
    chosen = torch.cat([each.values.argmax(1) for each in noted(network).values()])
    assert len(chosen.unique()) > 1
    said = expected(network, static)
    assert report.macs == pytest.approx(said.macs.mean().item())
    assert report.macs < said.dense_macs == pytest.approx(executed(host(), seen).macs + 2 * (16 * 8 + 8 * 3))
    # Tiles of 4x4 patches, of which 3x2 cover 9x7, with the 6x6 around them and the class token, which sees all.
    assert said.dense_macs - said.least_macs == 2 * 2 * 16 * (64 * 64 - (12 * 8 * 37 + 64))


@pytest.mark.parametrize(
    ("name", "options", "side", "share"),
    [
        ("deit_small_patch16_224", {}, 224, 0.942),
        (
            "deit_tiny_patch16_224",
            {"img_size": 32, "patch_size": 2, "embed_dim": 48, "depth": 4, "num_heads": 3},
            32,
            0.599,
        ),
    ],
)
def test_what_windows_save_at_most_is_as_the_page_says(name: str, options: Any, side: int, share: float) -> None:
    macs = []
    for order in (0, 1):
        network = routed_spans(name, 10, [order], "fixed", options=options)
        macs.append(executed(network, torch.zeros(1, 3, side, side)).macs)
    assert macs[1] / macs[0] == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(("routing", "eval_routing"), [("soft", "mean"), ("hard", "mean"), ("hard", "argmax")])
def test_it_learns_and_does_not_see_its_batch(routing: Any, eval_routing: Any) -> None:
    network, seen = routed(routing=routing, eval_routing=eval_routing), images()
    network.train()
    network(seen).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(controller.score.weight.grad.abs().max() > 0 for controller in controllers(network))
    network.eval()
    torch.testing.assert_close(network(seen)[2:3], network(seen[2:3]), rtol=1e-5, atol=1e-6)
    assert torch.equal(network(seen), network(seen))


def test_a_window_blocks_what_is_far() -> None:
    """Without class token one 3x3 layer sees no farther than a patch."""
    network, seen = routed([1], "no class token", routing="fixed"), images((36, 36))
    seen.requires_grad_()
    network.blocks[0](network._pos_embed(network.patch_embed(seen)))[0, 0].sum().backward()
    assert seen.grad is not None
    reached = seen.grad[0].abs().sum(0).unflatten(1, (9, 4)).unflatten(0, (9, 4)).sum((1, 3)) > 0
    assert reached.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_it_is_the_same(training: bool) -> None:
    network, seen = routed(eval_routing="argmax").train(training), images()
    # One layer is enough, and compiling is slow.
    del network.blocks[1]
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(seen), network(seen), rtol=1e-5, atol=1e-6)


def test_a_copy_has_a_grid_of_its_own() -> None:
    network = routed()
    other = copy.deepcopy(network)
    seen = images()[:2]
    assert torch.equal(other(seen), network(seen))
    assert other.blocks[0].attn.grid is other.blocks[1].attn.grid is not network.blocks[0].attn.grid


def test_maps_of_a_routed_backbone() -> None:
    backbone = timm.create_model("deit_tiny_patch16_224", features_only=True, out_indices=(1,), img_size=32, **TINY)
    route_spans(backbone.model, [0, 1])
    assert backbone(images((32, 32)))[0].shape == (4, 16, 8, 8)
    assert len(noted(backbone)) == 2


def test_what_has_no_places_is_refused() -> None:
    with pytest.raises(Mistake, match="ResNet has no grid of patches"):
        routed_spans("resnet18")
    with pytest.raises(Mistake, match="routing is one of soft, hard, fixed, not 'best'"):
        routed_spans("deit_tiny_patch16_224", routing="best", options=TINY)  # type: ignore[arg-type]
    with pytest.raises(Mistake, match="Eva has no Attention of timm"):
        routed_spans("eva02_tiny_patch14_224", options={"embed_dim": 16, "depth": 1, "num_heads": 2})
    dropping = routed_spans("deit_tiny_patch16_224", options={**TINY, "img_size": 32, "patch_drop_rate": 0.5})
    with pytest.raises(Mistake, match=r"8x8 has 65 tokens .* there are 33\. Set patch_drop_rate to 0"):
        dropping(images((32, 32)))
    with pytest.raises(Mistake, match="no other mask"):
        routed([0]).blocks[0].attn(torch.zeros(1, 64, 16), is_causal=True)
