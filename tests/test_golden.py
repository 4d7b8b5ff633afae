"""Recorded inputs, weights and outputs of the published implementations, replayed through ours.

Every file under `--golden DIR` is run by the builder of its system and case, in `golden_builders/<system>.py` or, where
a system has many parts, in `golden_builders/<system>_<part>.py`. A builder sees the weights, the inputs and the
metadata, never the recorded outputs; it returns what our code computes under the names of the recorded tensors. Sizes
and options come from the metadata alone.
"""

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

BUILDERS = Path(__file__).parent / "golden_builders"


@dataclass(frozen=True)
class Case:
    """What a builder may know: official weights, inputs, constructor arguments, and the shapes of the results."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    shapes: dict[str, torch.Size]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" not in metafunc.fixturenames:
        return
    folder = metafunc.config.getoption("--golden")
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*/*.safetensors"))
    if not files:
        raise pytest.UsageError(f"--golden {folder}: no *.safetensors there")
    metafunc.parametrize("golden_file", files, ids=[f"{file.parent.name}/{file.stem}" for file in files])


def test_golden(golden_file: Path) -> None:
    metadata, tensors = read(golden_file)
    system = metadata.get("system", golden_file.parent.name)
    modules = load_builders(system)
    name = case_name(golden_file.stem, {case: build for module in modules for case, build in module.CASES.items()})
    builders = next(module for module in modules if name in module.CASES)
    build = builders.CASES[name]
    expected = {name: value for name, value in tensors.items() if name.startswith(("out.", "grad."))}
    case = Case(
        config=json.loads(metadata["config"]),
        state=section(tensors, "state."),
        inputs=section(tensors, "in."),
        shapes={name: value.shape for name, value in expected.items()},
    )
    actual = build(case)
    unclaimed = sorted(expected.keys() - actual.keys())
    assert expected, f"{golden_file} records no result"
    assert not unclaimed, f"no result of ours for {unclaimed}"
    # What is zero in exact arithmetic is recorded as rounding noise, which nothing can be near to but its size.
    zero = getattr(builders, "ZERO", {})
    for name in expected.keys() & zero.keys():
        largest = max(actual[name].abs().max().item(), expected.pop(name).abs().max().item())
        assert largest <= zero[name], f"{name} is zero but for rounding, not {largest:.2e}"
    distances = {name: distance(actual[name].detach(), value) for name, value in expected.items()}
    far = {name: f"{value:.2e}" for name, value in distances.items() if not value <= builders.TOLERANCE}
    assert not far, f"further than {builders.TOLERANCE:g} from the recorded values: {far}"


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest recorded value of the tensor: small tensors get no discount."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, recorded {tuple(expected.shape)}"
    if not expected.numel():
        return 0.0
    actual, expected = actual.double(), expected.double()
    difference = torch.where(actual == expected, 0.0, (actual - expected).abs()).max().item()
    finite = expected[expected.isfinite()].abs()
    return difference / ((finite.max().item() if finite.numel() else 0.0) or 1.0)


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_builders(system: str) -> list[ModuleType]:
    # By file and not by package, so that it works in every import mode of pytest.
    paths = [*BUILDERS.glob(f"{system}.py"), *BUILDERS.glob(f"{system}_*.py")]
    assert paths, f"no golden builders for the system {system!r}: write {system}.py"
    modules = []
    for path in paths:
        spec = importlib.util.spec_from_file_location(f"golden_builders_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    return modules


def case_name(stem: str, cases: dict[str, Callable[[Case], dict[str, Tensor]]]) -> str:
    """The case of a file: the longest name that its stem begins with, or else contains as whole words."""
    whole = {case: re.search(rf"(?<![a-z0-9]){re.escape(case)}(?![a-z])", stem.lower()) for case in cases}
    found = [case for case, match in whole.items() if match]
    first = [case for case in found if stem.lower().startswith(case)]
    assert found, f"no golden builder for the case {stem!r}; there are: {', '.join(sorted(cases))}"
    return max(first or found, key=len)


@pytest.mark.parametrize(
    ("stem", "case"),
    [
        ("block", "block"),
        ("block_2", "block"),
        ("block7", "block"),
        ("block_no_layerscale_tiny", "block_no_layerscale"),
        ("heldout_block_no_layerscale", "block_no_layerscale"),
        ("model-b", "model"),
    ],
)
def test_case_of_a_file(stem: str, case: str) -> None:
    assert case_name(stem, dict.fromkeys(["block", "block_no_layerscale", "model"], lambda _: {})) == case


def test_a_case_without_a_builder_fails() -> None:
    with pytest.raises(AssertionError, match="no golden builder"):
        case_name("attention", {"block": lambda _: {}})


def test_a_wrong_value_is_far() -> None:
    expected = torch.tensor([1.0, float("inf"), -1e3])
    assert distance(expected.clone(), expected) == 0
    assert distance(expected + 0.1, expected) == pytest.approx(1e-4)
    assert distance(torch.zeros(2), torch.tensor([1e-8, 0.0])) == 1
    assert distance(torch.full((2,), 1e-4), torch.zeros(2)) == pytest.approx(1e-4)
    assert not distance(torch.tensor([float("nan")]), torch.ones(1)) <= 1.0
