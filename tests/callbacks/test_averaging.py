"""Weights that are evaluated in place of the trained ones, by any rule; `test_callbacks.py` has the moving average."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from callbacks import AveragedWeights, PreciseBN, Rule, StepSeed, WeightEMA
from lightning_modules import Detection
from tests.library.batches import Batches
from tests.library.reports import trainer_with
from tests.library.taught_task import normed
from tests.library.toy_detector import ToyDetector, ToyScenes
from tests.library.toy_task import Line, Numbers, Sums, seeded

State = dict[str, Tensor]
WB = ("weight", "bias")


class Same(Numbers):
    """Six times the same batch."""

    def train_dataloader(self) -> Batches:
        return Batches([self.batches()[0]] * 6)


class States(Callback):
    """What is trained after each step, and what is evaluated."""

    def __init__(self) -> None:
        self.trained: list[State] = []
        self.evaluated: list[State] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.trained.append(copy.deepcopy(pl_module.state_dict()))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.evaluated.append(copy.deepcopy(pl_module.state_dict()))


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.5)


def fit(module: Any, folder: Path, *callbacks: Callback, data: Any = None, **options: Any) -> Trainer:
    trainer = trainer_with(
        StepSeed(3), *callbacks, folder=folder, num_sanity_val_steps=0, **{"max_epochs": 2, **options}
    )
    trainer.fit(module, data or Numbers())
    return trainer


def test_an_average_may_be_stitched_of_past_weights(tmp_path: Path) -> None:
    module, states = seeded(), States()
    weights = [copy.deepcopy(module.state_dict())]
    fit(module, tmp_path, AveragedWeights(Rule(0.0, 0.7, "element")), states)
    weights += states.trained
    assert len(weights) == 7
    for name, value in module.state_dict().items():
        past = torch.stack([each[name] for each in weights])
        same = past == value
        assert same.any(0).all()
        # Of several, and not of the last alone.
        assert same.float().argmax(0).unique().numel() > 1
        assert torch.equal(states.evaluated[-1][name], value)
    assert not torch.equal(weights[-1]["network.layer.weight"], module.state_dict()["network.layer.weight"])


def test_a_moving_average_is_a_rule_that_keeps_nothing(tmp_path: Path) -> None:
    ends = []
    for callback in (WeightEMA(0.8), AveragedWeights(Rule(0.8))):
        module = seeded()
        fit(module, tmp_path, callback)
        ends.append(module.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("unit", ["tensor", "channel"])
def test_a_resumed_training_ends_with_the_same_bits(unit: str, tmp_path: Path) -> None:
    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "kept.ckpt")

    def average() -> AveragedWeights:
        return AveragedWeights(Rule(0.5, 0.5, unit))  # type: ignore[arg-type]

    module, first = seeded(), average()
    fit(module, tmp_path, first, Keep(), data=Same())
    again, second = Sums(), average()
    trainer = trainer_with(StepSeed(3), second, folder=tmp_path, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(again, Same(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())
    assert torch.equal(first.state_dict()["ages"], second.state_dict()["ages"])


def test_statistics_may_be_those_of_the_averaged_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, states = Sums(normed()), States()
    fit(module, tmp_path, AveragedWeights(Rule(0.9), "recalibrate"), states)
    images = [batch["image"] for batch in Numbers().batches()]
    for state in (states.evaluated[0], states.evaluated[-1], module.state_dict()):
        again = normed()
        again.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
        maps = [again[0](each) for each in images]
        torch.testing.assert_close(state["network.1.running_mean"], torch.stack([x.mean(0) for x in maps]).mean(0))
        torch.testing.assert_close(state["network.1.running_var"], torch.stack([x.var(0) for x in maps]).mean(0))


class NormedDetector(ToyDetector):
    """A detector with a batch norm over what it sees of an image."""

    def __init__(self) -> None:
        super().__init__(has_masks=False)
        self.backbone: Any = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def test_a_detector_is_evaluated_with_stitched_weights_and_their_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, states, data = Detection(NormedDetector(), optimizer=sgd), States(), ToyScenes()
    initial = copy.deepcopy(module.state_dict())
    # Whole layers, of which the backbone's stay as they were.
    rule = Rule(0.0, 0.5, "layer", keep_layers={"backbone": 1.0})
    fit(module, tmp_path, AveragedWeights(rule, "recalibrate"), states, data=data)
    past = [initial, *states.trained]
    for evaluated in states.evaluated:
        assert torch.equal(evaluated["network.backbone.0.weight"], initial["network.backbone.0.weight"])
        ages = [[torch.equal(each[f"network.head.{x}"], evaluated[f"network.head.{x}"]) for each in past] for x in WB]
        # Weight and bias are of one and the same step.
        assert ages[0] == ages[1]
        assert sum(ages[0]) == 1
    assert len({value["network.head.bias"].tolist()[0] for value in states.evaluated}) > 1
    maps = [
        torch.nn.functional.linear(
            torch.stack([image.mean((1, 2)) for image in batch["image"]]),
            *(initial[f"network.backbone.0.{x}"] for x in WB),
        )
        for batch in data.loader()
    ]
    statistics = module.state_dict()
    torch.testing.assert_close(
        statistics["network.backbone.1.running_mean"], torch.stack([x.mean(0) for x in maps]).mean(0)
    )
    torch.testing.assert_close(
        statistics["network.backbone.1.running_var"], torch.stack([x.var(0) for x in maps]).mean(0)
    )
    assert module.findings is not None
    # What was found is what these weights find.
    found = {each.index: each.scores for each in module.findings.images}
    module.eval()
    for index in range(data.images):
        batch = data.batch([index])
        (expected,) = module.network(batch["image"], batch["target"])
        torch.testing.assert_close(torch.as_tensor(found[index]), expected["scores"].double())


def test_averages_are_finer_than_weights_of_half_precision(tmp_path: Path) -> None:
    class Halves(Numbers):
        def batches(self) -> list[Any]:
            return [batch | {"image": batch["image"].bfloat16()} for batch in super().batches()]

    module, average = Sums(normed()), AveragedWeights(Rule(0.5, 0.5), "recalibrate")
    fit(module, tmp_path, average, data=Halves(), precision="bf16-true")
    assert module.network[0].weight.dtype == torch.bfloat16  # type: ignore[index]
    assert average.following is not None
    assert average.following.smoother.teacher[0].dtype == torch.float32


def test_an_average_that_comes_late_warms_up_then(tmp_path: Path) -> None:
    trainer = fit(seeded(), tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    module, states = seeded(), States()
    later = trainer_with(WeightEMA(warm_up=True), states, folder=tmp_path, max_epochs=2, num_sanity_val_steps=0)
    later.fit(module, Numbers(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    average = torch.load(tmp_path / "kept.ckpt", weights_only=True)["state_dict"]
    for trained, share in zip(states.trained, [2 / 11, 3 / 12, 4 / 13], strict=True):
        average = {name: share * value + (1 - share) * trained[name] for name, value in average.items()}
    torch.testing.assert_close(dict(module.state_dict()), average)


def test_what_is_logged(tmp_path: Path) -> None:
    logged = fit(seeded(), tmp_path, AveragedWeights(Rule(0.5, 0.5)), log_every_n_steps=1).logged_metrics
    assert logged["train/average_momentum"] == 0.5
    assert logged["train/average_effective_momentum"] == 0.75
    assert 0 < logged["train/average_distance"] < 1
    assert {"train/average_renewed/network.layer", "train/average_age/network.layer"} <= logged.keys()
    plain = fit(seeded(), tmp_path, WeightEMA(0.5), log_every_n_steps=1).logged_metrics
    assert [name for name in plain if "average" in name] == ["train/average_distance"]


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no batch norm to recalibrate: leave out batch_norm"):
        fit(Sums(Line()), tmp_path, AveragedWeights(Rule(), "recalibrate"))
    with pytest.raises(ValueError, match="batch_norm must be one of ema, copy, recalibrate, not 'own'"):
        AveragedWeights(Rule(), "own")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"PreciseBN: AveragedWeights evaluates averaged weights, .* recalibrate"):
        fit(Sums(normed()), tmp_path, PreciseBN(), AveragedWeights(Rule()))
