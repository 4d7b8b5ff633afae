from __future__ import annotations

from typing import Any

import pytest
import torch

from models.official import LayoutError, absent_parts, load, unwrap
from models.segmenters.dynamic_routing import DynamicRouting


def network(route: str, classes: int = 5) -> DynamicRouting:
    return DynamicRouting(classes, num_layers=3, width=4, route=route)


def checkpoint(source: DynamicRouting) -> dict[str, Any]:
    """As a run of ours leaves it."""
    return {"state_dict": {f"network.{name}": value for name, value in source.state_dict().items()}, "epoch": 3}


def test_gates_are_added_to_a_trained_network() -> None:
    fixed, dynamic = network("all"), network("dynamic")
    before = {name: value.clone() for name, value in dynamic.state_dict().items()}
    fresh = load(dynamic, unwrap(checkpoint(fixed)))
    state, given = dynamic.state_dict(), fixed.state_dict()
    gates = {
        f"layers.{layer}.{level}.gate.{name}"
        for layer, level, cell in dynamic.cells()
        if cell.gate is not None
        for name in cell.gate.state_dict()
    }
    assert set(fresh) == gates == state.keys() - given.keys()
    assert all(torch.equal(state[name], before[name] if name in gates else given[name]) for name in state)


def test_a_single_gate_is_not_left_out() -> None:
    state = network("dynamic").state_dict()
    one = [name for name in state if name.startswith("layers.2.1.gate.")]
    assert one
    torn = {name: value for name, value in state.items() if name not in one}
    assert absent_parts(network("dynamic"), torn) == {}
    with pytest.raises(LayoutError, match=r"missing layers\.2\.1\.gate\.reduce\.0\.weight"):
        load(network("dynamic"), torn)
    with pytest.raises(LayoutError, match=r"unknown layers\.0\.0\.gate"):
        load(network("all"), state)


def test_gates_and_other_classes_together() -> None:
    dynamic = network("dynamic")
    fresh = load(dynamic, network("all", classes=7).state_dict())
    gates = [name for names in absent_parts(dynamic, network("all").state_dict()).values() for name in names]
    assert fresh == [*gates, "decoder.predictor.weight", "decoder.predictor.bias"]
