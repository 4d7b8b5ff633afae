"""Fixed networks in the grid of Dynamic Routing."""

from __future__ import annotations

import pytest
import torch

from models.compute import parameter_count
from models.decisions import noted
from models.segmenters.dynamic_routing import DynamicRouting
from models.segmenters.dynamic_routing_flops import cell_costs, decoder_flops, paper_flops
from models.segmenters.dynamic_routing_routes import FIXED, TRANSFORMS, all_edges, common_route, fixed_route, pruned


# G FLOPs by the published counter at 1024 x 2048, the initial cell included, and M parameters (the sheet).
@pytest.mark.parametrize(
    ("route", "flops", "params"),
    [
        ("fcn32s", 26.2, 3.8),
        ("deeplabv3", 26.1, 1.65),
        ("unet", 49.6, 3.0),
        ("hrnet", 62.4, 5.35),
        ("auto_deeplab", 27.5, 2.5),
    ],
)
def test_published_sizes(route: str, flops: float, params: float) -> None:
    with torch.device("meta"):
        network = DynamicRouting(route=route)
    gates = torch.zeros(1, 17, 4, 3)
    for layer, level, transform in fixed_route(route, 16):
        gates[0, layer, level, TRANSFORMS.index(transform)] = 1
    size = (1024, 2048)
    total = paper_flops(network, gates, size)[1].item() + decoder_flops(64, 19, (1024, 1024))
    total += cell_costs(64, elementwise=True)["body"] * size[0] * size[1] / 16
    assert total / 1e9 == pytest.approx(flops, rel=0.01)
    assert parameter_count(network) / 1e6 == pytest.approx(params, rel=0.015)


@pytest.mark.parametrize("num_layers", [3, 4, 5, 6, 8, 12, 16, 33])
@pytest.mark.parametrize("route", FIXED)
def test_routes_of_any_depth_lead_from_the_stem_to_the_decoder(route: str, num_layers: int) -> None:
    edges = fixed_route(route, num_layers)
    assert edges == pruned(edges, num_layers)


@pytest.mark.parametrize("route", ["deeplabv3", "unet", "hrnet"])
def test_a_fixed_network_trains_all_it_has(route: str) -> None:
    torch.manual_seed(0)
    network = DynamicRouting(5, 6, 4, route)
    logits = network(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5, 64, 64)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    opened = {(layer, level, TRANSFORMS[i]) for layer, level, i in noted(network)[""].values[0].nonzero().tolist()}
    assert opened == fixed_route(route, 6)


def test_a_dynamic_network_with_open_gates_is_the_fixed_one() -> None:
    torch.manual_seed(0)
    dynamic = DynamicRouting(5, 4, 4).eval()
    fixed = DynamicRouting(5, 4, 4, "all").eval()
    fixed.load_state_dict({name: value for name, value in dynamic.state_dict().items() if ".gate." not in name})
    for _, _, cell in dynamic.cells():
        assert cell.gate is not None
        torch.nn.init.constant_(cell.gate.score.bias, 1e4)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(dynamic(x), fixed(x), rtol=1e-4, atol=1e-4)


def test_common_route_is_what_most_images_take() -> None:
    usage = torch.zeros(5, 4, 3)
    for layer, level, transform in fixed_route("fcn32s", 4):
        usage[layer, level, TRANSFORMS.index(transform)] = 0.7
    usage[1, 0, TRANSFORMS.index("keep")] = 0.49
    # Open for most, and leads nowhere.
    usage[3, 0, TRANSFORMS.index("down")] = 0.9
    route = common_route(usage)
    assert set(route) == fixed_route("fcn32s", 4)
    assert DynamicRouting(5, 4, 4, route)(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)
    with pytest.raises(ValueError, match="no path from the initial cell"):
        common_route(usage, threshold=0.8)


def test_an_edge_outside_of_the_grid() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 'keep'\) is none"):
        pruned([*all_edges(4), (1, 2, "keep")], 4)
    with pytest.raises(ValueError, match="is none"):
        DynamicRouting(5, 4, 4, [(4, 1, "up")])
