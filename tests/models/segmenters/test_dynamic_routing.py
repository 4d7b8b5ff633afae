"""Dynamic Routing: cost against the published tables, work that is skipped, and training."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from callbacks.compute_budget import ComputeBudget
from lightning_modules import Segmentation
from models.compute import count, executed, expected, has_values, parameter_count, recorded, static_macs
from models.decisions import noted
from models.layers.soft_gate import SoftGate, soft_gate
from models.official import LayoutError, load, system_of
from models.official.dynamic_routing import LAYOUT
from models.segmenters.dynamic_routing import DynamicRouting
from models.segmenters.dynamic_routing_cell import Cell, ScheduledDropPath
from models.segmenters.dynamic_routing_flops import cost_tables, decoder_flops, executed_macs, paper_flops, route_taken
from models.segmenters.dynamic_routing_routes import TRANSFORMS
from tests.library.routed_networks import images, tiny, undecided

SIZE = (1024, 2048)


def all_open(network: DynamicRouting) -> Tensor:
    gates = torch.zeros(1, network.num_layers + 1, 4, 3)
    for layer, level, cell in network.cells():
        for transform in cell.transforms:
            gates[0, layer, level, TRANSFORMS.index(transform)] = 1
    return gates


# Measured on the published network (the sheet): parameters, those of gates, G multiply-adds at 1024 x 2048.
@pytest.mark.parametrize(
    ("options", "params", "gates", "macs"),
    [
        ({}, 17_784_968, 2_523_125, 117.91),
        pytest.param({"small_gate": True}, 17_784_968, 2_523_125, 102.31, marks=pytest.mark.slow),
        pytest.param({"num_layers": 33}, 38_871_666, 5_518_559, 241.37, marks=pytest.mark.slow),
        ({"route": "all"}, 15_261_843, 0, 101.27),
        pytest.param({"route": "all", "num_layers": 33}, 33_353_107, 0, 206.47, marks=pytest.mark.slow),
    ],
)
def test_published_sizes(options: dict[str, Any], params: int, gates: int, macs: float) -> None:
    with torch.device("meta"):
        network = DynamicRouting(**options)
    assert parameter_count(network) == params
    assert sum(parameter_count(cell.gate) for *_, cell in network.cells() if cell.gate is not None) == gates
    assert count(network, (3, *SIZE)).conv_macs / 1e9 == pytest.approx(macs, abs=5.1e-3)


# G FLOPs of everything open by the published counter, which takes the decoder's map for a square.
@pytest.mark.parametrize(
    ("options", "size", "flops"),
    [
        ({}, SIZE, 118.09),
        ({}, (768, 768), 33.61),
        ({"small_gate": True}, SIZE, 102.27),
        ({"small_gate": True}, (768, 768), 29.16),
        ({"num_layers": 33}, SIZE, 244.62),
        ({"num_layers": 33}, (768, 768), 69.20),
    ],
)
def test_published_flops(options: dict[str, Any], size: tuple[int, int], flops: float) -> None:
    with torch.device("meta"):
        network = DynamicRouting(**options)
    with torch.device("cpu"):
        _, real = paper_flops(network, all_open(network), size)
    total = real.item() + decoder_flops(network.width, network.num_classes, (size[0], size[0]))
    assert total / 1e9 == pytest.approx(flops, abs=5.1e-3)


def test_expected_flops_of_everything_open() -> None:
    with torch.device("meta"):
        network = DynamicRouting()
    gates = all_open(network)
    assert paper_flops(network, gates, SIZE)[0].item() / 1e6 == pytest.approx(95_614.9, abs=0.06)
    assert paper_flops(network, gates, (768, 768))[0].item() / 1e6 == pytest.approx(26_891.7, abs=0.06)


@pytest.mark.parametrize("size", [(64, 96), (70, 81), (33, 32)])
def test_logits_have_the_size_of_the_images(size: tuple[int, int]) -> None:
    network = tiny()
    assert network.train()(images(2, *size)).shape == (2, 5, *size)
    assert network.eval()(images(2, *size)).shape == (2, 5, *size)


def test_an_image_takes_its_route_whatever_its_batch() -> None:
    network, batch = undecided(), images()
    with torch.no_grad():
        together = network(batch)
        gates = noted(network)[""].values
        alone = torch.cat([network(image[None]) for image in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    opened = gates > 0
    # The test is about images of different routes, with cells that are closed for some and not for others.
    assert len({tuple(row.tolist()) for row in opened.flatten(1)}) > 3
    share = opened.any(3)[:, 1:].float().mean(0)
    assert ((share > 0) & (share < 1)).sum() >= 3


def test_work_that_is_closed_is_not_run() -> None:
    network, batch = undecided(), images()
    report = executed(network, batch)
    with torch.no_grad():
        network(batch)
    layers = recorded(network)
    ran = {module.name: module.macs for module in report.modules}
    for name, layer in layers.items():
        assert layer.expected.mean().item() == pytest.approx(ran[name], rel=1e-5), name
    dense = sum(layer.dense for layer in layers.values())
    assert 0.05 * dense < sum(ran[name] for name in layers) < 0.95 * dense


def test_evaluation_without_branches_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = undecided(), images()
    with torch.no_grad():
        sparse, gates = network(batch), network.features(batch)[1]
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        torch.testing.assert_close(network(batch), sparse, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.features(batch)[1], gates, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_evaluation_compiles_and_exports() -> None:
    network, batch = undecided(num_layers=3), images()
    compiled = torch.compile(copy.deepcopy(network), backend="eager", fullgraph=True)
    exported = torch.export.export(network, (batch,)).module()
    with torch.no_grad():
        for run in (compiled, exported):
            torch.testing.assert_close(run(batch), network(batch), rtol=1e-4, atol=1e-4)


def test_compute_in_training_is_weighted_by_the_gates() -> None:
    network, batch = tiny().train(), images(2)
    maps, gates = network.features(batch)
    compute = expected(network, static=0.0)
    costs, _ = paper_flops(network, gates, (64, 96))
    everything, _ = paper_flops(network, all_open(network), (64, 96))
    # The paper's counts differ from multiply-adds by norms and activations, which weigh most where channels are few.
    torch.testing.assert_close(compute.share, costs / everything, rtol=0.02, atol=0)
    (gradient,) = torch.autograd.grad(compute.macs.sum(), network.get_parameter("layers.2.1.gate.score.bias"))
    assert (gradient > 0).any()
    assert all(value.shape == (2, 4 << level, 16 >> level, 24 >> level) for level, value in maps.items())


def test_the_budget_is_on_what_gates_decide_over() -> None:
    network = tiny(num_layers=3).train()
    module = Segmentation(network)
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: value)
    trainer: Any = SimpleNamespace(num_training_batches=100, accumulate_grad_batches=1, strategy=strategy)
    trainer.datamodule = None
    callback = ComputeBudget(0.1, 0.8, scope="dynamic", begin_epochs=0.4, warmup_epochs=0.02)
    callback.setup(trainer, module, "fit")
    network(images(3))
    penalties = {}
    for trainer.global_step in (0, 39, 40, 41, 42, 99):
        penalties[trainer.global_step] = module.penalties["compute"]().item()
    layers = recorded(network).values()
    share = sum(layer.expected.mean().item() for layer in layers) / sum(layer.dense for layer in layers)
    full = 0.8 * (share - 0.1) ** 2
    assert full > 0.1
    assert list(penalties.values()) == pytest.approx([0, 0, 0, full / 2, full, full])


def test_static_and_dynamic_parts_make_the_whole() -> None:
    network = tiny(num_layers=3)
    static = static_macs(network, (3, 64, 96))
    network.train()(images(2))
    dense = expected(network, static).dense_macs
    assert dense == pytest.approx(count(network, (3, 64, 96)).macs)


@pytest.mark.parametrize(
    ("options", "size"), [({}, (64, 96)), ({"small_gate": True}, (160, 192)), ({"route": "unet"}, (64, 64))]
)
def test_executed_multiply_adds_are_known_from_the_gates(options: dict[str, Any], size: tuple[int, int]) -> None:
    network = (tiny if "route" in options else undecided)(**options).eval()
    if network.dynamic:
        # Cells at stride 16 and 32 get nothing from some images, and there do not even look.
        gate = network.get_submodule("layers.1.1.gate.score")
        nn.init.constant_(gate.bias, -2.0)  # type: ignore[arg-type]
    batch = images(6, *size)
    with torch.no_grad():
        network(batch)
    costs = executed_macs(network, noted(network)[""].values, size)
    assert costs.tolist() == [executed(network, image[None]).macs for image in batch]


def test_a_route_goes_as_far_as_something_is_sent() -> None:
    gates = torch.zeros(3, 4, 4, 3)
    # The first image stays at the finest level; of the second, everything is closed; the third has gates of a cell that
    # nothing reaches, and some that are too small together to count as open.
    gates[0, 0, 0, 0] = 0.5
    gates[2, 1, 1, 0] = 0.9
    gates[2, 2, 0, :] = 2e-5
    edges, cells = route_taken(gates)
    assert edges.nonzero().tolist() == [[0, 0, 0, 0]]
    assert [[level.tolist() for level in image.sum(0)] for image in cells] == [[4, 3, 0, 0], [4, 0, 0, 0], [4, 0, 0, 0]]


def test_an_executed_budget_has_the_value_of_what_runs_and_the_gradient_of_what_is_expected() -> None:
    network, batch = undecided(), images()
    shares, gradients = {}, {}
    for network.budget in ("expected", "executed"):
        network.train().zero_grad()
        network(batch)
        compute = expected(network, static=0.0)
        compute.macs.mean().backward()
        shares[network.budget] = compute.share.detach()
        gradients[network.budget] = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    # What an evaluation by the same gates would run.
    taken = route_taken(noted(network)[""].values)[0].double()
    bodies, transforms = cost_tables(network, elementwise=False)
    hard = (taken.amax(3) * bodies).sum((1, 2)) + (taken * transforms).sum((1, 2, 3))
    torch.testing.assert_close(shares["executed"].double(), hard * 64 * 96 / compute.dense_macs, rtol=1e-5, atol=0)
    assert ((shares["executed"] - shares["expected"]).abs() > 0.02).all()
    assert len(gradients["executed"]) == len(gradients["expected"]) > 10
    for one, other in zip(gradients["executed"], gradients["expected"], strict=True):
        assert torch.equal(one, other)


def test_an_executed_budget_closes_edges_until_it_is_met() -> None:
    ran = {}
    for budget in ("expected", "executed"):
        network = tiny(num_layers=3, budget=budget).train()
        gates = [parameter for name, parameter in network.named_parameters() if ".gate." in name]
        optimizer = torch.optim.SGD(gates, lr=2.0)
        batch = images(4, 32, 32)
        for _ in range(50):
            optimizer.zero_grad()
            network(batch)
            (expected(network, static=0.0).share.mean() - 0.6).square().backward()
            optimizer.step()
        with torch.no_grad():
            network.budget = "executed"
            network(batch)
        ran[budget] = expected(network, static=0.0).share.mean().item()
    # Weaker gates satisfy the other one, with more of them open.
    assert ran["executed"] == pytest.approx(0.6, rel=0.1)
    assert ran["expected"] > 0.7


@pytest.mark.slow
def test_training_with_a_budget_on_what_is_executed_compiles() -> None:
    network = tiny(num_layers=3, budget="executed").train()
    torch.compile(network, backend="eager", fullgraph=True)(images(2))
    assert expected(network, static=0.0).macs.requires_grad


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_parameter_is_trained_and_the_graph_is_whole(compiled: bool) -> None:
    network = tiny(num_layers=3, drop_path_rate=0.3).train()
    run = torch.compile(network, backend="eager", fullgraph=True) if compiled else network
    run(images(2)).square().mean().backward()
    missing = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not missing


@pytest.mark.parametrize("training", [True, False])
def test_half_precision_decides_in_single(training: bool) -> None:
    network = undecided().train(training)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        logits = network(images(3))
    assert logits.isfinite().all()
    assert noted(network)[""].values.dtype == torch.float32
    assert all(layer.expected.dtype == torch.float32 for layer in recorded(network).values())


def test_soft_gate_closes_exactly_and_without_gradient() -> None:
    logits = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 1.5], requires_grad=True)
    gates = soft_gate(logits)
    assert gates.tolist()[:3] == [0, 0, 0]
    assert gates[4].item() == pytest.approx(0.9051, abs=1e-4)
    (gradient,) = torch.autograd.grad(gates.sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([0, 0, 0, 1.0, 0.1807]), atol=1e-4, rtol=0)
    assert soft_gate(torch.tensor([0.3], dtype=torch.bfloat16)).dtype == torch.float32


def test_gates_start_nearly_open() -> None:
    network = tiny(width=16).train()
    network(images(4))
    paths = noted(network)[""].values.flatten(1)[:, network.path_index]
    assert (paths > 0).float().mean() > 0.8
    assert SoftGate(8, 3).score.bias.tolist() == [1.5] * 3  # type: ignore[union-attr]


def test_a_closed_cell_keeps_its_input() -> None:
    cell = Cell(4, TRANSFORMS).eval()
    assert cell.gate is not None
    nn.init.constant_(cell.gate.score.bias, -100.0)  # type: ignore[arg-type]
    x = torch.randn(2, 4, 8, 8)
    outputs, gates = cell(x)
    assert not gates.any()
    assert torch.equal(outputs["keep"], x)
    assert not outputs["up"].any()
    assert not outputs["down"].any()
    (sent,), _ = cell.sparse(x, [1])
    assert sent.transform == "keep"
    assert sent.images == [1]
    assert sent.maps is not None
    assert torch.equal(sent.maps, x[1:])


def test_drop_path_grows_with_the_training() -> None:
    torch.manual_seed(0)
    layer, x = ScheduledDropPath(0.5), torch.ones(4000, 1, 1, 1)
    layer.progress.fill_(0.5)
    dropped = layer(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    layer.progress.fill_(0.0)
    assert torch.equal(layer(x), x)
    assert torch.equal(layer.eval()(x), x)
    assert not layer.state_dict()


def test_counting_does_not_look_at_data() -> None:
    network = undecided(num_layers=3)
    with torch.device("meta"):
        meta = tiny(num_layers=3)
        assert not has_values(torch.empty(1))
    assert count(network, (3, 64, 96)).macs == count(meta, (3, 64, 96)).macs


@pytest.mark.parametrize("route", ["dynamic", "all"])
def test_official_layout_and_back(route: str) -> None:
    state = tiny(route=route).state_dict()
    official = LAYOUT.to_official(state)
    assert system_of(official) == "dynamic_routing"
    assert system_of(state, to="official") == "dynamic_routing"
    ours = LAYOUT.to_ours(official)
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], value) for name, value in state.items())
    assert torch.equal(official["backbone.all_cell_list.1.2.res_up.1.norm.weight"], state["layers.2.2.up.1.weight"])
    del official["backbone.all_cell_list.2.3.res_up.1.weight"]
    with pytest.raises(LayoutError, match=r"missing backbone\.all_cell_list\.2\.3\.res_up\.1\.weight"):
        LAYOUT.to_ours(official)


def test_no_official_layout_of_other_routes() -> None:
    with pytest.raises(LayoutError, match="missing"):
        LAYOUT.to_official(tiny(route="fcn32s").state_dict())


def test_another_number_of_classes_keeps_its_own_predictor() -> None:
    network = tiny(num_classes=3)
    assert load(network, tiny().state_dict()) == ["decoder.predictor.weight", "decoder.predictor.bias"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 2}, "num_layers must be 3 or more"),
        ({"width": 5}, "width must be even"),
        ({"num_classes": 0}, "num_classes must be positive"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be in"),
        ({"route": "segnet"}, "route must be one of dynamic, fcn32s, deeplabv3, unet, auto_deeplab, hrnet, all"),
        ({"route": "unet", "small_gate": True}, "small_gate is for the route 'dynamic'"),
        ({"budget": "real"}, "budget must be one of expected, executed, not 'real'"),
        ({"route": "unet", "budget": "executed"}, "budget 'executed' is for the route 'dynamic'; 'unet' has no gates"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_small_gates_need_pixels() -> None:
    network = tiny(small_gate=True)
    assert network(images(2, 128, 128)).shape == (2, 5, 128, 128)
    with pytest.raises(ValueError, match="128 pixels or more"):
        network(images(2, 96, 128))
