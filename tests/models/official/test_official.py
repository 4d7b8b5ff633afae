from typing import ClassVar

import pytest
import timm
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from models.official import LayoutError, absent_parts, layout_of, load, spare_parts, system_of, unwrap

WEIGHTS = {"layer.weight": torch.ones(2, 2)}
OTHER = {"layer.weight": torch.zeros(2, 2)}
SMALL = {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8)}


@pytest.mark.parametrize(
    ("checkpoint", "ema"),
    [
        (WEIGHTS, False),
        ({"model": WEIGHTS, "model_ema": OTHER, "epoch": 3}, False),
        ({"model": OTHER, "model_ema": WEIGHTS}, True),
        ({"state_dict": WEIGHTS, "meta": {}}, False),
        ({"model_state_dict": WEIGHTS, "flops": [0.5, 1.5], "dynamic_threshold": torch.ones(2, 2)}, False),
        ({"state_dict": {"network.layer.weight": WEIGHTS["layer.weight"], "loss.weight": torch.ones(1)}}, False),
        ({"state_dict": OTHER, "current_model_state": WEIGHTS, "averaging_state": {}}, False),
        ({"state_dict": WEIGHTS, "current_model_state": OTHER, "averaging_state": {}}, True),
    ],
)
@pytest.mark.filterwarnings("ignore:left out")
def test_weights_are_found(checkpoint: dict, ema: bool) -> None:
    state = unwrap(checkpoint, ema)
    assert list(state) == ["layer.weight"]
    assert torch.equal(state["layer.weight"], WEIGHTS["layer.weight"])


ENDLESS: dict = {}
ENDLESS["model"] = ENDLESS


@pytest.mark.parametrize(
    ("checkpoint", "ema", "message"),
    [
        ([1, 2], False, "holds a list"),
        ({}, False, "no weights"),
        ({"epoch": 3, "model": 4}, False, "no weights in it .it has epoch, model"),
        ({"model": WEIGHTS}, True, "no averaged weights"),
        (ENDLESS, False, "its entries hold each other"),
    ],
)
def test_files_without_weights(checkpoint: object, ema: bool, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        unwrap(checkpoint, ema)


def test_systems_are_told_by_their_keys() -> None:
    ours = timm.create_model("convnext_atto", **SMALL).state_dict()
    assert system_of(ours, "official") == "convnext"
    assert system_of(layout_of("convnext").to_official(ours)) == "convnext"
    with pytest.raises(LayoutError, match=r"\(layer.weight\) fit the official layout of none of the systems"):
        system_of(WEIGHTS)
    with pytest.raises(LayoutError, match=r"unknown system 'resnext'; known: .*convnext"):
        layout_of("resnext")


def classifier(num_classes: int = 3, **options: object) -> nn.Module:
    return timm.create_model("convnext_tiny", num_classes=num_classes, **SMALL, **options)


def test_equal_classes_keep_the_head() -> None:
    source, target = classifier(), classifier()
    assert load(target, source.state_dict(), head_init_scale=0.001) == []
    assert torch.equal(target.head.fc.weight, source.head.fc.weight)


def test_other_classes_start_a_new_head() -> None:
    source, target = classifier(num_classes=7), classifier()
    target.head.fc.bias.data.fill_(1)
    before = target.head.fc.weight.detach().clone()
    assert load(target, source.state_dict(), head_init_scale=0.001) == ["head.fc.weight", "head.fc.bias"]
    torch.testing.assert_close(target.head.fc.weight, before * 0.001)
    torch.testing.assert_close(target.head.fc.bias, torch.full((3,), 0.001))
    assert torch.equal(target.stem[0].weight, source.stem[0].weight)
    assert torch.equal(target.head.norm.weight, source.head.norm.weight)


@pytest.mark.parametrize(("source", "target"), [(False, True), (True, False)])
def test_pointwise_weights_fit_linear_layers_and_convolutions(source: bool, target: bool) -> None:
    given, network = classifier(conv_mlp=source).eval(), classifier(conv_mlp=target).eval()
    load(network, given.state_dict())
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(network(images), given(images))


def test_everything_else_must_fit() -> None:
    state = classifier().state_dict()
    without = {name: value for name, value in state.items() if name != "stages.0.blocks.0.gamma"}
    with pytest.raises(LayoutError, match=r"missing stages\.0\.blocks\.0\.gamma; unknown extra"):
        load(classifier(), without | {"extra": torch.ones(1)})
    with pytest.raises(LayoutError, match=r"stem.1.bias is \(5,\), not \(4,\)"):
        load(classifier(), state | {"stem.1.bias": torch.ones(5)})


class Windowed(nn.Module):
    def __init__(self, derived: bool, frozen: bool = False) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(1, 2, 1), FrozenBatchNorm2d(2) if frozen else nn.BatchNorm2d(2))
        self.window = nn.Linear(2, 2)
        if derived:
            self.window.register_buffer("relative_position_index", torch.arange(4))


def test_what_follows_from_a_network_may_be_missing_or_left_over() -> None:
    """Files of other libraries count no batches; buffers of sizes come and go with the versions of a network."""
    state = {name: value + 1 for name, value in Windowed(True).state_dict().items()}
    counter, index = "convs.1.num_batches_tracked", "window.relative_position_index"
    uncounted = {name: value for name, value in state.items() if name not in (counter, index)}
    network = Windowed(True)
    assert load(network, uncounted) == []
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in uncounted.items())
    assert loaded[counter] == 0
    assert torch.equal(loaded[index], torch.arange(4))
    assert load(Windowed(False, frozen=True), state) == []
    # A norm that is not there is missed with its counter, and a counter without a norm is a stranger.
    with pytest.raises(LayoutError, match=r"missing convs\.1\.running_mean$"):
        load(Windowed(True), {name: value for name, value in uncounted.items() if name != "convs.1.running_mean"})
    with pytest.raises(LayoutError, match=r"unknown norm\.num_batches_tracked$"):
        load(Windowed(True), state | {"norm.num_batches_tracked": torch.tensor(1)})


class Declaring(nn.Module):
    fresh_parts: ClassVar[dict[str, str]] = {"norms": r".*\.norm\..*", "head": r"head\..*"}
    spare_parts: ClassVar[dict[str, str]] = {"memory": r"memory\..*"}

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(2, 2)
        self.head = nn.ModuleDict({"norm": nn.BatchNorm1d(2), "score": nn.Linear(2, 3)})


def test_declared_parts_are_loaded_whole_or_not_at_all() -> None:
    state = Declaring().state_dict()
    norms = [name for name in state if ".norm." in name]
    head = [name for name in state if ".score." in name]
    trunk = {name: state[name] for name in ("trunk.weight", "trunk.bias")}
    assert absent_parts(Declaring(), state) == spare_parts(Declaring(), state) == {}
    assert load(Declaring(), state) == []
    # A name belongs to the first part that it fits.
    assert absent_parts(Declaring(), trunk) == {"norms": norms, "head": head}
    for given, missing in ((trunk, norms + head), ({k: v for k, v in state.items() if k not in norms}, norms)):
        network = Declaring()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        assert load(network, given) == missing
        for name, value in network.state_dict().items():
            assert torch.equal(value, before[name] if name in missing else given[name])
    for name in state:
        with pytest.raises(LayoutError, match=f"missing {name}$"):
            load(Declaring(), {other: value for other, value in state.items() if other != name})


def test_declared_spare_weights_have_no_place() -> None:
    state = Declaring().state_dict()
    memory = {f"memory.{i}": torch.ones(1) for i in range(2)}
    assert spare_parts(Declaring(), state | memory) == {"memory": list(memory)}
    assert load(Declaring(), state | memory) == []
    with pytest.raises(LayoutError, match=r"unknown memories\.0$"):
        load(Declaring(), state | memory | {"memories.0": torch.ones(1)})
