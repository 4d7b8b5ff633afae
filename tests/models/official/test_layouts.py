"""What holds of the layout of every system: it is told apart, translates there and back, and refuses strangers."""

from __future__ import annotations

import itertools
import re
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import official
from models.official import Layout, LayoutError, foreign, layout_of, system_of, systems, unwrap
from tests.library.official_networks import BUILD, weights

# Official names that a file may lack: of hosts and of backbones, of which everything is taken as it is.
FREE = {
    "condconv": r"(?!.*routing_fn\.).*",
    "dynamic_conv": r"(?!.*attention\.).*",
    "deformable_detr": r"backbone\.0\.body\..*",
    "dge": r"cls_token",
    "dino": r"(student|teacher)\.backbone\..*",
    "dyfpn": r"backbone\..*",
    "detr": r"(detr\.)?backbone\.0\.body\..*",
    "moco": r"(encoder_[qk]\.(?!fc\.)|(student|teacher)\.backbone\.).*",
    "pruned_vgg": r"(feature|features\.module|trunk)\..*",
    "smca": r"backbone\.0\.body\..*",
    "solq": r"backbone\.0\.body\.(?!.*relative_position_index).*",
    "spatial_ensemble": r"((student|teacher)_encoder\.(?!fc\.)|(student|teacher)\.backbone\.).*",
    "torchvision_detectors": r"backbone\.body\..*",
}
# Official tensors that are one with another in ours, and say something of their own.
JOINED = {"dge": r"blocks\.\d+\.attn\.kv\..*"}


@pytest.fixture(scope="module", params=BUILD)
def case(request: pytest.FixtureRequest) -> tuple[str, Layout, dict[str, Tensor], dict[str, Tensor]]:
    """A system with its layout, weights of ours, and the same in the official layout."""
    system, ours = request.param.split("/")[0], weights(request.param)
    layout = layout_of(system)
    return system, layout, ours, layout.to_official(ours)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(value, right[name]) and value.dtype == right[name].dtype for name, value in left.items()
    )


def some_of(names: list[str]) -> list[str]:
    """One of those that differ in numbers only, and about six of these."""
    kinds = {re.sub(r"\d+", "#", name): name for name in names}
    return list(kinds.values())[:: 1 + len(kinds) // 6]


def test_every_system_is_here() -> None:
    assert {name.split("/")[0] for name in BUILD} == set(systems())


def test_matches_only_its_own(case) -> None:
    system, _, ours, theirs = case
    assert system_of(theirs) == system
    assert system_of(ours, to="official") == system
    for other in systems():
        layout = layout_of(other)
        assert layout.matches(theirs) == (other == system)
        assert layout.matches_ours(ours) == (other == system)
    # CondConv's published layout is ours.
    assert foreign(theirs)
    assert foreign(ours) == (system == "condconv")


def test_there_and_back(case) -> None:
    _, layout, ours, theirs = case
    assert same(layout.to_ours(theirs), ours)
    assert same(layout.to_official(layout.to_ours(theirs)), theirs)


def test_wrapped_with_leftovers(case) -> None:
    system, layout, ours, theirs = case
    names = (name.replace(".", "._orig_mod.", 1) for name in theirs)
    state = {f"_orig_mod.module.model.{name}": value for name, value in zip(names, theirs.values(), strict=True)}
    state |= {"_orig_mod.module.loss.criterion.weight": torch.ones(5), "module.total_ops": torch.zeros(1)}
    checkpoint = {"state_dict": state | {"epoch": 3}, "optimizer": {"state": {}}, "args": None}
    with pytest.warns(UserWarning, match=r"left out \(of a training.*epoch.*loss\.criterion\.weight") as told:
        bare = unwrap(checkpoint)
    assert len(told) == 1
    assert system_of(bare) == system
    assert same(layout.to_ours(bare), ours)
    # Also of weights that nobody has unwrapped.
    assert system_of({f"module.{name}": value for name, value in theirs.items()}) == system
    assert same(layout.to_ours({f"module.{name}": value for name, value in theirs.items()}), ours)


def test_missing_names_are_refused(case) -> None:
    system, layout, _, theirs = case
    required = [name for name in theirs if not re.fullmatch(FREE.get(system, ""), name)]
    for name in some_of(required):
        with pytest.raises(LayoutError, match=rf"missing .*\b{re.escape(name)}") as refusal:
            layout.to_ours({other: value for other, value in theirs.items() if other != name})
        assert "\n" not in str(refusal.value)


def test_strange_names_are_refused(case) -> None:
    system, layout, ours, theirs = case
    # Of these systems everything is taken but what belongs to the layers that they are about.
    strangers = {"condconv": "a.routing_fn.scale", "dynamic_conv": "a.attention.fc3.weight"}
    for name in (strangers.get(system, "stranger.weight"), f"{strangers.get(system, 'stranger.weight')}.007"):
        for translate, state in ((layout.to_ours, theirs), (layout.to_official, ours)):
            with pytest.raises(LayoutError, match=rf"unknown .*{re.escape(name)}") as refusal:
                translate(state | {name: torch.ones(1)})
            assert "\n" not in str(refusal.value)


def test_repeated_and_constant_tensors_are_checked(case) -> None:
    """What ours does without may not be lost when it says something."""
    system, layout, _, theirs = case
    kept = layout.unpack(theirs)
    implied = [name for name in theirs if name not in kept and not re.fullmatch(JOINED.get(system, ""), name)]
    for name in some_of(implied):
        with pytest.raises(LayoutError, match=rf"not the values that follow from other weights .*{re.escape(name)}"):
            layout.to_ours(theirs | {name: theirs[name] + 1})


def test_batches_may_be_uncounted(case) -> None:
    """The first versions of torch, and other libraries, count no batches."""
    system, layout, ours, theirs = case
    uncounted = {name: value for name, value in theirs.items() if not name.endswith(".num_batches_tracked")}
    counters = {name: torch.tensor(0) for name in ours if name.endswith(".num_batches_tracked")}
    found = layout.to_ours(uncounted)
    # What a layout does not know by name, the network has itself.
    assert all(name in found or re.fullmatch(FREE.get(system, ""), name) for name in counters)
    assert same(counters | found, ours | counters)


WRAPPERS = ("module.", "_orig_mod.", "model.", "network.")
NESTINGS = [nesting for length in (1, 2, 3) for nesting in itertools.permutations(WRAPPERS, length)]


@pytest.mark.parametrize("nesting", NESTINGS, ids="".join)
@pytest.mark.parametrize("entries", [(), ("state_dict",), ("model",), ("model_state_dict", "state_dict"), ("ema",)])
def test_wrappers_in_any_nesting(nesting: tuple[str, ...], entries: tuple[str, ...]) -> None:
    state = {"conv.weight": torch.ones(2), "head.model.bias": torch.zeros(1)}
    checkpoint: dict = {"".join(nesting) + name: value for name, value in state.items()}
    for entry in entries:
        checkpoint = {entry: checkpoint, "epoch": 3, "lr_scheduler": {"last_epoch": 3}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(unwrap(checkpoint), state)


@pytest.mark.parametrize(
    "wrapper", ["net.", "_forward_module.", "module._fsdp_wrapped_module.", "model._orig_mod.module."]
)
@pytest.mark.parametrize("entries", [("model_state",), ("module", "net"), ("network", "ema"), ("weights",), ("blobs",)])
def test_wrappers_of_other_trainers(wrapper: str, entries: tuple[str, ...]) -> None:
    state = {"conv.weight": torch.ones(2), "head.bias": torch.zeros(1)}
    checkpoint: dict = {wrapper + name.replace(".", "._checkpoint_wrapped_module."): v for name, v in state.items()}
    for entry in entries:
        checkpoint = {entry: checkpoint, "epoch": 3, "ema_model": None, "state_dict": {}}
    assert same(unwrap(checkpoint), state)


def test_an_average_beside_the_weights_is_left_out() -> None:
    weights = {"conv.weight": torch.ones(1)}
    state = {f"model.{name}": value for name, value in weights.items()}
    with pytest.warns(
        UserWarning, match=r"left out \(of a training, not of its network\): ema_model\.module\.conv\.weight$"
    ):
        assert same(unwrap(state | {"ema_model.module.conv.weight": torch.zeros(1)}), weights)


def test_names_that_become_the_same_are_refused() -> None:
    compiled = {"conv.weight": torch.ones(1), "_orig_mod.conv.weight": torch.zeros(1)}
    with pytest.raises(LayoutError, match="compiled network and of one that is not"):
        unwrap(compiled)
    routing = {"conv.routing_fn.weight": torch.ones(4, 2), "conv.routing_fn.bias": torch.ones(4)}
    twice = {"conv.bias": torch.ones(4, 2), "conv.condconv_bias": torch.zeros(4, 2)}
    with pytest.raises(LayoutError, match=r"several for the same tensor, conv\.bias, conv\.condconv_bias$"):
        layout_of("condconv").to_ours(routing | twice)


def test_a_wrapper_around_some_names_is_none() -> None:
    state = {"model.conv.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert same(unwrap(state), state)


@pytest.mark.parametrize("entry", ["model_ema", "state_dict_ema", "params_ema", "ema", "teacher"])
def test_averaged_weights_are_found(entry: str) -> None:
    raw, averaged = {"layer.weight": torch.ones(1)}, {"module.layer.weight": torch.zeros(1)}
    checkpoint = {"model": raw, entry: averaged | {"n_averaged": torch.tensor(4)}}
    assert same(unwrap(checkpoint), raw)
    with pytest.warns(UserWarning, match="n_averaged"):
        assert same(unwrap(checkpoint, ema=True), {"layer.weight": torch.zeros(1)})


@pytest.mark.parametrize("number", ["99999999", "9" * 5000, "00"])
def test_absurd_numbers_are_strangers(number: str) -> None:
    layout = layout_of("convnext")
    theirs = layout.to_official(weights("convnext"))
    with pytest.raises(LayoutError, match=f"unknown stages.0.{number}"):
        layout.to_ours(theirs | {f"stages.0.{number}.gamma": torch.ones(4)})


def test_a_new_table_is_found_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of CONTRIBUTING.md, as a file."""
    text = (Path(official.__file__).parents[2] / "CONTRIBUTING.md").read_text()
    example = next(code for code in re.findall(r"^ *```python\n(.*?)^ *```", text, re.M | re.S) if "Layout(" in code)
    (tmp_path / "toy.py").write_text(textwrap.dedent(example))
    monkeypatch.setattr(official, "__path__", [*official.__path__, str(tmp_path)])
    norm = dict.fromkeys(("weight", "bias", "running_mean", "running_var", "num_batches_tracked"), torch.ones(2))
    blocks = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    ours = {f"stages.{stage}.{block}.norm.{name}": value for stage, block in blocks for name, value in norm.items()}
    ours |= {f"stages.{stage}.{block}.conv.weight": torch.randn(2, 2) for stage, block in blocks}
    ours |= {"stages.1.0.shortcut.weight": torch.randn(2, 2), "stem.weight": torch.randn(2, 3)}
    ours |= {"head.weight": torch.randn(3, 2), "head.bias": torch.randn(3)}
    assert system_of(ours, "official") == "toy"
    theirs = layout_of("toy").to_official(ours)
    assert {"layer2.2.bn.bias", "layer2.0.shortcut.weight", "fc.bias"} <= theirs.keys()
    assert system_of(theirs) == "toy"
    assert same(layout_of("toy").to_ours(theirs), ours)
    for lost in ("layer1.1.conv.weight", "layer2.2.bn.bias", "fc.weight"):
        with pytest.raises(LayoutError, match=f"official Toy layout: missing {lost}$"):
            layout_of("toy").to_ours({name: value for name, value in theirs.items() if name != lost})
