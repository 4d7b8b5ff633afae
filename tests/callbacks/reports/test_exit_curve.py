"""Early exit in evaluations: what is solved, on which samples, what is logged, kept and drawn."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from callbacks import ExitCurve, NonFiniteGuard, NonFiniteLoss
from callbacks.reports.exit_curve import exit_metrics, random_accuracy
from drawing.exits import exit_curve, exit_sheet
from drawing.figures import save
from lightning_modules import Classification
from models.anytime import (
    ExitThresholds,
    Outcomes,
    evaluate,
    evaluate_exits,
    exit_costs,
    geometric_plans,
    linear_auc,
    shuffled,
    step_auc,
)
from tests.library.batches import Batches
from tests.library.outcomes import outcomes
from tests.library.reports import placed, trainer_with

CLASSES = 5
COSTS = [10.0, 25.0, 40.0, 100.0]
SIZE = (3, 2, 2)


class Cascade(nn.Module):
    """Three exits, each after a layer more."""

    num_classes = CLASSES

    def __init__(self, exits: int = 3) -> None:
        super().__init__()
        self.num_exits = exits
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(exits))
        self.heads = nn.ModuleList(nn.Linear(12, CLASSES) for _ in range(exits))

    def start(self, images: Tensor) -> Any:
        return [images.flatten(1)]

    def advance(self, exit: int, state: Any) -> tuple[Tensor, Any]:
        x = self.layers[exit](state[0]).relu()
        return self.heads[exit](x), [x]

    def forward(self, images: Tensor) -> list[Tensor]:
        state, exits = self.start(images), []
        for exit in range(self.num_exits):
            logits, state = self.advance(exit, state)
            exits.append(logits)
        return exits


class Plain(nn.Module):
    num_classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose first values say the class, some more clearly than others."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = torch.randn(count, 12, generator=generator)
    images[:, :CLASSES] += 3 * torch.rand(count, 1, generator=generator) * nn.functional.one_hot(labels, CLASSES)
    return images.view(count, *SIZE), labels


SPLITS = {"train": samples(192, 0), "val": samples(75, 1), "test": samples(61, 2)}


class Data(lightning.LightningDataModule):
    batch_size = 16

    def batches(self, split: str) -> Batches:
        images, labels = SPLITS[split]
        parts = torch.arange(len(labels)).split(self.batch_size)
        # The last samples first: in what order they come must not matter.
        return Batches([{"image": images[i], "label": labels[i], "index": i} for i in reversed(parts)])

    def train_dataloader(self) -> Batches:
        return self.batches("train")

    def val_dataloader(self) -> Batches:
        return self.batches("val")

    def test_dataloader(self) -> Batches:
        return self.batches("test")


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    return trainer_with(*callbacks, folder=folder, **options)


def module(network: nn.Module | None = None) -> Classification:
    torch.manual_seed(0)
    return Classification(network or Cascade(), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.3))


def fit(curve: ExitCurve, folder: Path, **options: Any) -> tuple[Classification, Trainer]:
    trained, runner = module(), trainer(folder, curve, **{"max_epochs": 6} | options)
    runner.fit(trained, Data())
    return trained, runner


def true_outcomes(trained: Classification, split: str, criterion: str = "max_prob") -> Outcomes:
    images, labels = SPLITS[split]
    with torch.no_grad():
        return Outcomes.from_logits(trained.network.eval()(images), labels, criterion)


@pytest.mark.parametrize("solver", ["geometric", "pareto"])
@pytest.mark.parametrize("criterion", ["max_prob", "entropy"])
def test_logs_what_the_thresholds_of_validation_do(criterion: str, solver: Any, tmp_path: Path) -> None:
    curve = ExitCurve(criterion, solver)
    trained, _ = fit(curve, tmp_path)
    costs = exit_costs(trained.network, SIZE)  # type: ignore[arg-type]
    assert curve.thresholds is not None
    assert curve.thresholds.costs == tuple(costs)
    assert curve.thresholds.samples == 75
    solved = ExitThresholds.solve(true_outcomes(trained, "val", criterion), costs, solver)
    assert [p.share for p in solved.points] == pytest.approx([p.share for p in curve.thresholds.points])

    before = curve.thresholds
    (logged,) = trainer(tmp_path, curve).test(trained, Data(), verbose=False)
    assert curve.thresholds is before
    tested = true_outcomes(trained, "test", criterion)
    for percent in (50, 75):
        at = evaluate(tested, before.policy(percent / 100).thresholds, costs)
        assert logged[f"test/top1_at_{percent}"] == pytest.approx(at.accuracy)
        assert logged[f"test/compute_share_at_{percent}"] == pytest.approx(at.cost / costs[-1])
        assert logged[f"test/top1_random_at_{percent}"] == pytest.approx(random_accuracy(tested, at))
    assert "test/top1_at_25" not in logged, "the first exit costs a third"
    points = [evaluate(tested, point.thresholds, costs) for point in before.points]
    curve_area = linear_auc([p.cost for p in points], [p.accuracy for p in points], costs[0], costs[-1])
    assert logged["test/auc_budgeted"] == pytest.approx(curve_area)
    steps = step_auc(costs, tested.accuracy.tolist(), costs[0], costs[-1])
    assert logged["test/auc_anytime"] == pytest.approx(steps)
    assert (logged["test/auc_low_macs"], logged["test/auc_high_macs"]) == (costs[0], costs[-1])


@pytest.mark.parametrize("exits", [2, 4])
@pytest.mark.parametrize("count", [30, 500])
def test_a_percentage_gets_the_dearest_plan_that_fits(count: int, exits: int) -> None:
    found, costs = outcomes(count, exits=exits), COSTS[:exits]
    solved = ExitThresholds.solve(found, costs)
    plans = [evaluate(found, plan, costs).cost for plan in geometric_plans(found.confidence)]
    assert solved.points[0].share == costs[0] / costs[-1]
    assert solved.points[-1].share == 1
    assert all(low.share < high.share for low, high in pairwise(solved.points))
    for percent in range(int(100 * costs[0] / costs[-1]) + 1, 101):
        mine = evaluate(found, solved.policy(percent / 100).thresholds, costs)
        within = [cost for cost in plans if cost <= percent / 100 * costs[-1] * (1 + 1e-9)]
        assert mine.cost == pytest.approx(max(within), rel=1e-9), percent


def test_pareto_is_never_worse_on_its_own_samples() -> None:
    found = outcomes(300)
    geometric, pareto = (ExitThresholds.solve(found, COSTS, solver) for solver in ("geometric", "pareto"))  # type: ignore[arg-type]
    by_share = lambda solved, share: evaluate(found, solved.policy(share).thresholds, COSTS).accuracy  # noqa: E731
    gains = [by_share(pareto, p / 100) - by_share(geometric, p / 100) for p in range(10, 101, 10)]
    assert min(gains) >= 0
    assert max(gains) > 0


def test_random_accuracy_is_the_mean_over_shuffles() -> None:
    found = outcomes(400)
    at = evaluate(found, ExitThresholds.solve(found, COSTS).policy(0.5).thresholds, COSTS)
    generator = torch.Generator().manual_seed(0)
    drawn = [evaluate_exits(found, shuffled(at.exits, generator), COSTS).accuracy for _ in range(400)]
    assert random_accuracy(found, at) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 20)
    assert at.accuracy > random_accuracy(found, at) + 3 * np.std(drawn)


def test_areas_between_given_ends() -> None:
    found = outcomes()
    solved = ExitThresholds.solve(found, COSTS)
    metrics = exit_metrics(found, COSTS, solved, 5.0, 60.0)
    assert metrics["auc_anytime"] == step_auc(COSTS, found.accuracy.tolist(), 5.0, 60.0)
    assert metrics["auc_anytime"] < exit_metrics(found, COSTS, solved, 10.0, 60.0)["auc_anytime"]


def test_nothing_is_solved_on_the_test_split(tmp_path: Path) -> None:
    curve = ExitCurve()
    (logged,) = trainer(tmp_path, curve).test(module(), Data(), verbose=False)
    assert curve.thresholds is None
    assert not [name for name in logged if "_at_" in name or "budgeted" in name]
    assert "test/auc_anytime" in logged


def test_thresholds_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    trained, runner = fit(ExitCurve(), tmp_path)
    runner.save_checkpoint(tmp_path / "kept.ckpt")
    state = torch.load(tmp_path / "kept.ckpt", weights_only=True)["callbacks"]["ExitCurve"]
    (logged,) = runner.test(trained, Data(), verbose=False)
    # A run that goes on, and one that tests.
    resumed = ExitCurve()
    trainer(tmp_path, resumed, max_epochs=6).fit(module(), Data(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    assert resumed.state_dict() == state
    curve = ExitCurve()
    other = trainer(tmp_path, curve)
    (again,) = other.test(module(), Data(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True, verbose=False)
    assert curve.state_dict() == state
    assert again == logged
    # The next training moves on from them.
    trainer(tmp_path, curve, max_epochs=7).fit(module(), Data(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    assert curve.state_dict() != state


def test_thresholds_are_plain_and_come_back() -> None:
    found = outcomes(40)
    solved = ExitThresholds.solve(found, COSTS)
    plain = solved.plain()
    assert plain["points"][0]["thresholds"][0] == "always"
    assert plain["points"][-1]["thresholds"] == ["never", "never", "never", "always"]
    assert ExitThresholds.from_plain(json.loads(json.dumps(plain))) == solved
    for broken in ({}, [], {**plain, "points": []}, {**plain, "costs": [1.0]}, {**plain, "points": [{"share": "x"}]}):
        with pytest.raises(ValueError, match="thresholds"):
            ExitThresholds.from_plain(broken)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"costs": [1.0, 2.0, 3.0, float("nan")]}, "costs of exits"),
        ({"costs": [0.0, 0.0, 0.0, 0.0]}, "costs of exits"),
        ({"costs": [4.0, 3.0, 2.0, 1.0]}, "costs of exits"),
        ({"costs": [1.0, 2.0, 3.0, 10**400]}, "OverflowError"),
        ({"validation_samples": float("inf")}, "OverflowError"),
        ({"criterion": "os.system"}, "no confidence criterion"),
        ({"criterion": ["max_prob"]}, "no confidence criterion"),
        ({"points": "each"}, "TypeError"),
    ],
)
def test_thresholds_of_a_stranger_are_refused(change: dict[str, Any], message: str) -> None:
    plain = ExitThresholds.solve(outcomes(40), COSTS).plain()
    with pytest.raises(ValueError, match=message):
        ExitThresholds.from_plain(plain | change)


@pytest.mark.parametrize("share", [float("nan"), -1.0, 2.0])
def test_shares_of_a_stranger_are_refused(share: float) -> None:
    plain = ExitThresholds.solve(outcomes(40), COSTS).plain()
    plain["points"][-1]["share"] = share
    with pytest.raises(ValueError, match="shares of the last exit"):
        ExitThresholds.from_plain(plain)


@pytest.mark.parametrize(
    ("share", "message"),
    [(0.0, r"in \(0, 1\], not 0"), (1.01, "not 1.01"), (float("nan"), "not nan"), (0.05, "takes a share of 0.1000")],
)
def test_budgets_that_cannot_be_are_refused(share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExitThresholds.solve(outcomes(), COSTS).policy(share)


@pytest.mark.parametrize("network", [Plain, lambda: Cascade(1)])
def test_networks_without_exits_are_left_alone(network: Any, tmp_path: Path) -> None:
    curve = ExitCurve()
    logged = trainer(tmp_path, placed(curve, tmp_path)).validate(module(network()), Data(), verbose=False)[0]
    assert curve.state_dict() == {}
    assert sorted(logged) == ["val/loss", "val/top1"]
    assert not list(tmp_path.iterdir())


def test_half_a_validation_is_forgotten(tmp_path: Path) -> None:
    class Interrupt(lightning.pytorch.Callback):
        def on_validation_batch_end(self, *args: Any) -> None:
            raise RuntimeError("interrupted")

    curve = ExitCurve()
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(tmp_path, curve, Interrupt()).validate(module(), Data(), verbose=False)
    trainer(tmp_path, curve).validate(module(), Data(), verbose=False)
    assert curve.thresholds is not None
    assert curve.thresholds.samples == 75


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_was_not_finite_is_told_by_its_step(tmp_path: Path) -> None:
    class Break(lightning.pytorch.Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 10:
                pl_module.network.heads[0].weight.data.fill_(torch.nan)

    with pytest.raises(NonFiniteLoss, match="step 11"):
        trainer(tmp_path, Break(), ExitCurve(), NonFiniteGuard(), max_epochs=1).fit(module(), Data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "certainty"}, "criterion must be one of max_prob, margin"),
        ({"solver": "genetic"}, "solver must be one of geometric, pareto"),
        ({"low": 3.0, "high": 2.0}, "low must be below high"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExitCurve(**options)


def test_drawings_are_readable_files(tmp_path: Path) -> None:
    points = ([1e6, 2e6], [0.5, 0.75])
    drawn = exit_curve(points, points, points, "title")
    assert [line.get_label() for line in drawn.axes[0].get_lines()][::2] == [
        "one exit for all",
        "an exit for each image",
    ]
    assert len(exit_curve(points).axes[0].get_lines()) == 2
    image = np.zeros((4, 6, 3), np.uint8)
    sheet = exit_sheet([[image] * 3, []], [["a"] * 3, []], [[True, False, True], []], ["exit 0", "exit 1"], "title")
    assert [each.axes[1].title.get_color() for each in sheet.subfigs] == ["tab:red", "black"]
    for name, figure in (("curve", drawn), ("sheet", sheet)):
        assert save(figure, tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
