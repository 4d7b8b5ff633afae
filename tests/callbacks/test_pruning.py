"""Pruning while a network trains: what is zero, when, and the same after a resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from safetensors.torch import save_file
from torch import Tensor, nn

from callbacks import MaskPruning, Slimming, SoftFilterPruning, StepSeed, StructureSelection
from models.classifiers import scaled_branches
from models.mistakes import Mistake
from models.pruning.selection import magnitude_masks
from tests.library.reports import trainer_with
from tests.library.toy_task import Numbers, Sums

# Three batches of the numbers are an epoch.
STEPS = 3


def task() -> Sums:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 8, 1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 2),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return Sums(network, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.1))


class Weights(Callback):
    """Keeps the network's state before each step, as it begins, and its gradients."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.network.state_dict()))


def fit(folder: Path, *callbacks: Callback, epochs: int = 4, module: Sums | None = None, **options: Any) -> Trainer:
    trainer = trainer_with(StepSeed(3), *callbacks, folder=folder, max_epochs=epochs, **options)
    trainer.fit(module or task(), Numbers())
    return trainer


def zeros(state: dict[str, Tensor]) -> int:
    return sum(int((state[name] == 0).sum()) for name in ("1.weight", "3.weight"))


def test_weights_go_in_rounds_and_stay_away(tmp_path: Path) -> None:
    weights = Weights()
    fit(tmp_path, MaskPruning(0.5, epochs=[1, 2]), weights)
    total = 8 + 4 * 8 * 4
    # The one at the threshold goes, too.
    first = total // 2 + 1
    second = first + (total - first) // 2 + 1
    assert [zeros(state) for state in weights.states] == [0] * STEPS + [first] * STEPS + [second] * 2 * STEPS
    assert torch.equal(weights.states[6]["3.weight"] == 0, weights.states[-1]["3.weight"] == 0)
    # What is left goes on.
    assert not torch.equal(weights.states[6]["3.weight"], weights.states[-1]["3.weight"])


def test_a_ticket_starts_where_the_network_did(tmp_path: Path) -> None:
    """One step after the rewinding it is one step from the beginning, with a fresh optimiser."""
    start = copy.deepcopy(task().network.state_dict())
    weights = Weights()
    fit(tmp_path, MaskPruning(0.5, epochs=[2], then="rewind"), weights)
    after = weights.states[2 * STEPS]
    mask = after["3.weight"] != 0
    assert 0 < mask.sum() < mask.numel()
    masked = {
        name: value * (after[name] != 0) if name in ("1.weight", "3.weight") else value for name, value in start.items()
    }
    module = task()
    module.network.load_state_dict(masked)
    again = Weights()
    fit(tmp_path, again, module=module, epochs=1)
    # Weights that are pruned have no gradient there.
    torch.testing.assert_close(after["5.weight"], again.states[0]["5.weight"])
    torch.testing.assert_close(after["3.weight"], again.states[0]["3.weight"] * mask)


def test_random_weights_under_the_mask(tmp_path: Path) -> None:
    weights = Weights()
    fit(tmp_path, MaskPruning(0.5, epochs=[1], then="redraw"), weights, epochs=2)
    before, after = weights.states[STEPS - 1]["3.weight"], weights.states[STEPS]["3.weight"]
    assert ((after != 0) & ((after - before).abs() < 1e-3)).sum() < 3


def test_filters_of_smallest_norm_go(tmp_path: Path) -> None:
    weights = Weights()
    fit(tmp_path, MaskPruning(0.5, granularity="filter"), weights, epochs=1)
    norms = task().network.state_dict()["3.weight"].abs().flatten(1).sum(1)
    kept = norms.topk(2).indices.sort().values
    for state in weights.states:
        assert torch.equal(state["3.weight"].flatten(1).any(1).nonzero()[:, 0], kept)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaskPruning(0.4, epochs=[0.67, 2], then="rewind", rewind_to=0.34),
        lambda: SoftFilterPruning(0.5),
        lambda: Slimming(0.01),
    ],
)
def test_a_resumed_training_ends_with_the_same_bits(make: Any, tmp_path: Path) -> None:
    whole = fit(tmp_path, make())

    class Kept(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == STEPS:
                trainer.save_checkpoint(tmp_path / "kept.ckpt")

    fit(tmp_path, make(), Kept(), epochs=1)
    again = trainer_with(StepSeed(3), make(), folder=tmp_path, max_epochs=4)
    again.fit(task(), Numbers(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    assert again.global_step == whole.global_step == 4 * STEPS
    resumed = again.lightning_module.state_dict()
    for name, value in whole.lightning_module.state_dict().items():
        assert torch.equal(value, resumed[name]), name


def test_soft_filters_are_zero_after_an_epoch_and_grow_again(tmp_path: Path) -> None:
    weights = Weights()
    fit(tmp_path, SoftFilterPruning(0.5), weights, epochs=2)
    gone = [int((~state["3.weight"].flatten(1).any(1)).sum()) for state in weights.states]
    assert gone == [0, 0, 2, 0, 0, 2]


def test_slimming_makes_scales_smaller(tmp_path: Path) -> None:
    with_it, without = (fit(tmp_path, *callbacks).lightning_module.network for callbacks in ([Slimming(0.05)], []))
    assert with_it[2].weight.abs().sum() < without[2].weight.abs().sum()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskPruning(1.0), "share lies between 0 and 1, not 1"),
        (lambda: MaskPruning(0.5, epochs=[]), "epochs are one or more"),
        (lambda: MaskPruning(0.5, epochs=[1, 2], granularity="filter"), "filters go once"),
        (lambda: MaskPruning(0.5, then="rewind", rewind_to=1), "rewind_to 1 comes after the pruning at epoch 0"),
        (lambda: SoftFilterPruning(0.0), "keep lies between 0 and 1, not 0"),
        (lambda: Slimming(0.0), "s is positive, not 0"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        make()


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (MaskPruning(0.5), "Line has no convolutions"),
        (Slimming(0.1), "Line has no batch norm whose scales it could make sparse"),
    ],
)
def test_networks_without_the_layers_are_refused(callback: Callback, message: str, tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=message):
        fit(tmp_path, callback, module=Sums())


def test_a_filter_is_left_in_every_layer(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"3\.weight would lose all its 4 filters|1\.weight would lose all its 8 filters"):
        fit(tmp_path, MaskPruning(0.9, granularity="filter"))


@pytest.mark.parametrize("kind", ["checkpoint", "weights"])
def test_masks_follow_the_weights_of_another_training(kind: str, tmp_path: Path) -> None:
    other = task()
    with torch.no_grad():
        for name in ("1.weight", "3.weight"):
            other.network.get_parameter(name).mul_(torch.rand(other.network.get_parameter(name).shape))
    state = other.network.state_dict()
    path = tmp_path / ("other.ckpt" if kind == "checkpoint" else "other.safetensors")
    if kind == "checkpoint":
        torch.save({"state_dict": {f"network.{name}": value for name, value in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    weights = Weights()
    fit(tmp_path, MaskPruning(0.5, of=str(path)), weights, epochs=1)
    expected, _ = magnitude_masks({name: state[name] for name in ("1.weight", "3.weight")}, 0.5)
    for name, mask in expected.items():
        assert torch.equal(weights.states[-1][name] != 0, mask)
        state[name] *= mask
    # Zeros of a masked network are its masks.
    save_file(state, tmp_path / "masked.safetensors")
    fit(tmp_path, MaskPruning(None, of=str(tmp_path / "masked.safetensors")), weights, epochs=1)
    assert all(torch.equal(weights.states[-1][name] != 0, mask) for name, mask in expected.items())


def test_files_without_the_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    save_file({"1.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    reasons = {"no.ckpt": "no weights can be read", "text.ckpt": "no weights can be", "other.safetensors": r"1\.weight"}
    for name, told in reasons.items():
        with pytest.raises(Mistake, match=told) as refusal:
            fit(tmp_path, MaskPruning(0.5, of=str(tmp_path / name)), epochs=1)
        assert "\n" not in str(refusal.value)
    with pytest.raises(Mistake, match="without a share"):
        MaskPruning(None)


class Residual(nn.Module):
    """A block around a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def residual(**options: Any) -> Sums:
    torch.manual_seed(0)
    network = scaled_branches(nn.Sequential(Residual(), Residual(), nn.Linear(4, 3)), ["*.inner"])
    return Sums(network, optimizer=lambda groups: torch.optim.SGD(groups, **({"lr": 0.1, "momentum": 0.9} | options)))


def test_scales_take_proximal_steps_and_nothing_else_moves_them(tmp_path: Path) -> None:
    """The first step by hand: z = 1 - lr g, shrunk by lr p; v = S(z) - 1; scale = S(z) + m v."""
    module = residual(lr=0.1, weight_decay=0.5)
    before = copy.deepcopy(module)
    batch = Numbers().batches()[0]["image"]
    before.network(batch).square().mean().backward()
    fit(tmp_path, StructureSelection(0.5, momentum=0.8), module=module, max_steps=1)
    for place in ("0", "1"):
        gradient = before.network.get_parameter(f"{place}.inner.branch_scale").grad
        assert gradient is not None
        shrunk = (1 - 0.1 * gradient - 0.1 * 0.5).clamp(min=0)
        found = module.network.get_parameter(f"{place}.inner.branch_scale")
        torch.testing.assert_close(found.detach(), shrunk + 0.8 * (shrunk - 1))


def test_scales_become_zero_and_resume_as_they_were(tmp_path: Path) -> None:
    whole = residual()
    fit(tmp_path, StructureSelection(2.0), epochs=4, module=whole)
    assert not whole.network.get_parameter("0.inner.branch_scale").detach()
    half = residual()
    trainer = fit(tmp_path, StructureSelection(2.0), epochs=2, module=half)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = residual()
    again = trainer_with(StepSeed(3), StructureSelection(2.0), folder=tmp_path, max_epochs=4)
    again.fit(resumed, Numbers(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name])


def test_structure_selection_needs_scales(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="has no scales on its branches"):
        fit(tmp_path, StructureSelection(0.1))
    with pytest.raises(Mistake, match="penalty is positive"):
        StructureSelection(0.0)
