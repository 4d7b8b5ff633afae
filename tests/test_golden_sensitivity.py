"""A network that is wrong in one place is told from the published one: the golden comparison passes none of these."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.library.golden import Case, Vector, far, open_vector

GOLDEN = Path(__file__).parent / "golden"

# A small vector of each system that has weights, a norm, and an activation behind a norm or a linear map.
VECTORS = [
    "adpc/hr_module",
    "condconv/inverted_residual_block",
    "container/mixblock",
    "convnext/block",
    "detectors/convnext_mask_rcnn_loss",
    "detr/detr_encoder_layer",
    "drconv/shuffle_block_stride1",
    "drnet/predictor",
    "dvt/token_performer",
    "dynamic_conv/basic_block",
    "dynamic_routing/cell_gate2_down",
    "pruning/channel_selection_block",
    "ranet/conv_bn",
    "semantic_segmentation/upernet_convnext",
    "smd/scale_invariance",
    "solq/deform_transformer",
    "spatial_ensemble/encoder_eval",
    "student_teacher/dino_vit",
]

NORMS = {F.layer_norm, F.group_norm, F.batch_norm}
MAPS = NORMS | {F.linear, F.conv2d, torch.conv2d}
ACTIVATIONS = {F.relu, F.gelu, F.silu, F.softmax, torch.relu, Tensor.relu, Tensor.sigmoid, Tensor.softmax}


class OtherEpsilon(TorchFunctionMode):
    """Norms with the epsilon of another library."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in NORMS:
            return func(*args, **(kwargs or {}))
        place = 7 if func is F.batch_norm else 4
        return func(*args[:place], **{**(kwargs or {}), "eps": 1e-3})


class OtherOrder(TorchFunctionMode):
    """The first activation that follows a norm, a convolution or a linear map comes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[tuple[Tensor, Callable[[Tensor], Tensor], Tensor]] = []
        self.swapped = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in ACTIVATIONS and not self.swapped:
            for result, apply, x in self.results:
                if args[0] is result:
                    self.swapped = True
                    return apply(func(x.clone(), *args[1:], **options))
        result = func(*args, **options)
        if func in MAPS and not self.swapped:
            self.results.append((result, lambda x: func(x, *args[1:], **options), args[0]))
        return result


def under(mode: type[TorchFunctionMode], vector: Vector) -> Vector:
    """The vector with a builder whose network computes otherwise."""

    def build(case: Case) -> dict[str, Tensor]:
        with mode():
            return vector.build(case)

    return replace(vector, build=build)


def one_weight(vector: Vector) -> Vector:
    """The vector with one number of its first matrix or kernel off by one hundredth."""
    name = next(name for name, x in vector.tensors.items() if name.startswith("state.") and x.ndim >= 2)
    weight = vector.tensors[name].clone()
    weight.view(-1)[weight.abs().argmax()] *= 1.01
    return replace(vector, tensors=vector.tensors | {name: weight})


WRONG: dict[str, Callable[[Vector], Vector]] = {
    "one weight": one_weight,
    "one constant": lambda vector: under(OtherEpsilon, vector),
    "one order of operations": lambda vector: under(OtherOrder, vector),
}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_network_is_far(name: str, wrong: str) -> None:
    assert far(WRONG[wrong](open_vector(GOLDEN / f"{name}.safetensors")))


def test_wrong_outcomes_are_far() -> None:
    """Early exit has no weights: one logit, one cost, and the order of the exits."""
    vector = open_vector(GOLDEN / "adaptive_inference/given_thresholds.safetensors")
    logits, config = vector.tensors["in.logits"], json.loads(vector.config)
    other = logits.clone()
    other.view(-1)[other.argmin()] = 2 * other.max()
    costs = [1.01 * config["flops"][0], *config["flops"][1:]]
    assert not far(vector)
    assert far(replace(vector, tensors=vector.tensors | {"in.logits": other}))
    assert far(replace(vector, tensors=vector.tensors | {"in.logits": logits.flip(0)}))
    assert far(replace(vector, config=json.dumps(config | {"flops": costs})))


def test_rounding_is_excused_and_nothing_more() -> None:
    """Terms that cancel: float32 knows their sum to about 1e-5, in whatever order they are added."""
    terms = torch.randn(10000, generator=torch.Generator().manual_seed(0))
    terms = torch.cat([terms, (0.5 - terms.double().sum()).float()[None]])

    def recorded(sum_up: Callable[[Tensor], Tensor], value: float) -> Vector:
        def build(case: Case) -> dict[str, Tensor]:
            return {"out.sum": sum_up(case.inputs["terms"])[None]}

        tensors = {"in.terms": terms, "out.sum": torch.tensor([value])}
        return Vector("{}", tensors, SimpleNamespace(TOLERANCE=1e-6), build)

    exact = terms.double().sum().item()
    for value in (terms.sum().item(), terms.cumsum(0)[-1].item(), terms.flip(0).cumsum(0)[-1].item()):
        for sum_up in (torch.sum, lambda x: x.cumsum(0)[-1]):
            assert not far(recorded(sum_up, value)), value
    assert far(recorded(torch.sum, 1.002 * exact))
    assert far(recorded(lambda x: 1.002 * x.sum(), exact))
    assert far(recorded(torch.sum, math.nan))


def test_what_is_well_conditioned_is_excused_nothing() -> None:
    weight = torch.linspace(0.1, 1, 10)

    def build(case: Case) -> dict[str, Tensor]:
        return {"out.square": case.state["weight"].square(), "out.place": case.state["weight"].argmax()}

    def recorded(square: Tensor, place: int) -> Vector:
        tensors = {"state.weight": weight, "out.square": square, "out.place": torch.tensor(place)}
        return Vector("{}", tensors, SimpleNamespace(TOLERANCE=1e-6), build)

    assert not far(recorded(weight.square(), 9))
    assert far(recorded(weight.square() * (1 + 2e-6), 9)).keys() == {"out.square"}
    assert far(recorded(weight.square(), 8)).keys() == {"out.place"}


def test_a_network_that_insists_on_float32_is_known_in_float64_too() -> None:
    """A part in float32 meets another in float64: then both are in float64."""
    matrix, x = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))

    def build(case: Case) -> dict[str, Tensor]:
        return {"out.y": case.state["matrix"] @ case.inputs["x"].float()}

    vector = Vector("{}", {"state.matrix": matrix, "in.x": x, "out.y": matrix @ x}, SimpleNamespace(), build)
    torch.testing.assert_close(vector.exact()["out.y"], matrix.double() @ x.double())
    assert torch.get_default_dtype() == torch.float32
