"""Recorded inputs, weights and outputs of the published implementations, replayed through ours.

Every file under `--golden DIR` is run by the builder of its system and case, in `golden_builders/<system>.py` or, where
a system has many parts, in `golden_builders/<system>_<part>.py`. A builder sees the weights, the inputs and the
metadata, never the recorded outputs (where a case was recorded without weights, `WEIGHTS_BESIDE` of its builders says
so, and they are those of the file beside it with the same `config`); it returns what our code computes under the names
of the recorded tensors. Sizes and options come from the metadata alone.

The rule. A tensor agrees with the record where our float32 result is within the builders' TOLERANCE of it, relative to
the largest recorded value. The record was rounded on some processor in some order, and so are we on another: where
a ReLU lies 1e-7 from zero or large terms cancel, both may be right and further apart than that. A tensor that misses
TOLERANCE is therefore computed in float64 too, and what our own float32 results differ from that, as they are and with
weights and inputs moved by one unit in the last place, is the rounding that the tensor is subject to. Then the float32
and the float64 result both have to be within 4 times that of the record, and within 1e-3 in any case. Integers have no
rounding to excuse them. `test_golden_sensitivity.py` shows that a wrong network still fails.
"""

from pathlib import Path

import pytest
import torch

from tests.library.golden import case_name, distance, far, open_vector


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" not in metafunc.fixturenames:
        return
    folder = metafunc.config.getoption("--golden")
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*/*.safetensors"))
    if not files:
        raise pytest.UsageError(f"--golden {folder}: no *.safetensors there")
    metafunc.parametrize("golden_file", files, ids=[f"{file.parent.name}/{file.stem}" for file in files])


def test_golden(golden_file: Path) -> None:
    vector = open_vector(golden_file)
    wrong = far(vector)
    assert not wrong, f"further from the recorded values than {vector.module.TOLERANCE:g} and rounding allow: {wrong}"


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
