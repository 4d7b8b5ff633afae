"""Replays recorded vectors of published implementations through ours: reading, building, comparing."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

BUILDERS = Path(__file__).parents[1] / "golden_builders"

# What rounding may excuse: so many times the error of our own float32 results, and never more than LARGEST.
MULTIPLE = 4
LARGEST = 1e-3
# How often a network is evaluated again in float32, its weights and inputs moved by rounding, to see that error.
DRAWS = 4


@dataclass(frozen=True)
class Case:
    """What a builder may know: official weights, inputs, constructor arguments, texts, shapes of the results."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    shapes: dict[str, torch.Size]
    text: dict[str, Any]


@dataclass
class Vector:
    """A recorded file with the builder of its case and the module where that is, which says what is tolerated."""

    config: str
    tensors: dict[str, Tensor]
    module: Any
    build: Callable[[Case], dict[str, Tensor]]
    text: str = "{}"

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.tensors.items() if name.startswith(("out.", "grad."))}

    def results(self, dtype: torch.dtype = torch.float32, draw: int | None = None) -> dict[str, Tensor]:
        """What our code computes under the names of the recorded tensors.

        Args:
            dtype: The precision of weights, inputs and all that is computed of them.
            draw: Seed for moving every weight and input by at most one unit in its last place of float32.
        """
        # Builders ask for gradients of their inputs, and may write to them.
        tensors = {name: value.clone() for name, value in self.tensors.items() if name not in self.expected}
        if draw is not None:
            tensors = {name: moved(value, draw) for name, value in tensors.items()}
        tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        case = Case(
            config=json.loads(self.config),
            state=section(tensors, "state."),
            inputs=section(tensors, "in."),
            shapes={name: value.shape for name, value in self.expected.items()},
            text=json.loads(self.text),
        )
        with default_dtype(dtype):
            actual = self.build(case)
        unclaimed = sorted(name for name in self.expected if actual.get(name) is None)
        assert not unclaimed, f"no result of ours for {unclaimed}"
        return {name: actual[name].detach() for name in self.expected}

    def exact(self) -> dict[str, Tensor]:
        """The results in float64, but for what a network decides in float32 whatever its input is, as it was recorded.

        Where its float32 parts do not fit together with the others in float64, they are in float64 too.
        """
        try:
            return self.results(torch.float64)
        except RuntimeError:
            with FloatIsDouble():
                return self.results(torch.float64)


def open_vector(path: Path) -> Vector:
    """Reads a recorded file and finds the builder of its case, by the file's name and its system's."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    modules = load_builders(metadata.get("system", path.parent.name))
    builders = {name: (module, build) for module in modules for name, build in module.CASES.items()}
    case = case_name(path.stem, builders)
    module, build = builders[case]
    if case in getattr(module, "WEIGHTS_BESIDE", ()):
        tensors |= weights_beside(path, metadata["config"])
    vector = Vector(metadata["config"], tensors, module, build, metadata.get("text", "{}"))
    assert vector.expected, f"{path} records no result"
    return vector


def weights_beside(path: Path, config: str) -> dict[str, Tensor]:
    """The weights of another file in the same folder, recorded of the same network: with the same metadata `config`."""
    for other in sorted(path.parent.glob("*.safetensors")):
        with safe_open(other, "pt") as file:
            names = [name for name in file.keys() if name.startswith("state.")]  # noqa: SIM118 (not a mapping)
            if names and file.metadata().get("config") == config:
                return {name: file.get_tensor(name) for name in names}
    raise AssertionError(f"{path}: it has no weights, and no file beside it has those of the same network")


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


def case_name(stem: str, cases: dict[str, Any]) -> str:
    """The case of a file: the longest name that its stem begins with, or else contains as whole words."""
    whole = {case: re.search(rf"(?<![a-z0-9]){re.escape(case)}(?![a-z])", stem.lower()) for case in cases}
    found = [case for case, match in whole.items() if match]
    first = [case for case in found if stem.lower().startswith(case)]
    assert found, f"no golden builder for the case {stem!r}; there are: {', '.join(sorted(cases))}"
    return max(first or found, key=len)


class FloatIsDouble(TorchFunctionMode):
    """Keeps in float64 what a network computes in float32 whatever its input is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (Tensor.double if func is Tensor.float else func)(*args, **(kwargs or {}))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def moved(x: Tensor, draw: int) -> Tensor:
    """Moves what is no whole number (counts, labels and masks are not rounded), and equal tensors equally."""
    if not x.is_floating_point():
        return x
    generator = torch.Generator().manual_seed(zlib.crc32(x.numpy().tobytes()) + draw)
    near = x * (1 + torch.finfo(torch.float32).eps * (2 * torch.rand(x.shape, generator=generator) - 1))
    return torch.where(x == x.round(), x, near)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value of the tensor: small tensors get no discount."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return 0.0
    actual, expected = actual.double(), expected.double()
    difference = torch.where(actual == expected, 0.0, (actual - expected).abs()).max().item()
    finite = expected[expected.isfinite()].abs()
    relative = difference / ((finite.max().item() if finite.numel() else 0.0) or 1.0)
    return math.inf if math.isnan(relative) else relative


def far(vector: Vector) -> dict[str, str]:
    """The tensors in which we disagree with the record, and how: the rule is in `tests/test_golden.py`."""
    results = vector.results()
    wrong, distances = {}, {}
    zero = getattr(vector.module, "ZERO", {})
    zero = zero(json.loads(vector.config)) if callable(zero) else zero
    for name, expected in vector.expected.items():
        if name not in zero:
            distances[name] = distance(results[name], expected)
        # What is zero in exact arithmetic is recorded as rounding noise, which nothing can be near to but its size.
        elif not (largest := max(results[name].abs().max().item(), expected.abs().max().item())) <= zero[name]:
            wrong[name] = f"{largest:.2e} where it is zero but for rounding"
    tolerance = vector.module.TOLERANCE
    doubtful = {name: value for name, value in distances.items() if not value <= tolerance}
    if doubtful:
        allowed = dict.fromkeys(doubtful, tolerance)
        exact = vector.exact()
        for name in doubtful:
            doubtful[name] = max(doubtful[name], distance(exact[name], vector.expected[name]))
        for draw in range(DRAWS + 1):
            own = vector.results(draw=draw) if draw else results
            for name in doubtful:
                if vector.expected[name].is_floating_point():
                    allowed[name] = min(max(allowed[name], MULTIPLE * distance(own[name], exact[name])), LARGEST)
            if all(value <= allowed[name] for name, value in doubtful.items()):
                break
        wrong |= {
            name: f"{value:.2e} for {allowed[name]:.2e}" for name, value in doubtful.items() if value > allowed[name]
        }
    return wrong
