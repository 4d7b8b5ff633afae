import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from lightning_modules.schedules import (
    AverageWarmup,
    Constant,
    CosineArc,
    MultiStep,
    OneCycle,
    Poly,
    Schedule,
    SpanTemperature,
    Staircase,
    StairWarmup,
    WarmupCosine,
)
from lightning_modules.warmup import Shortened
from models.mistakes import Mistake


def test_cosine_after_warm_up() -> None:
    table = WarmupCosine(warmup_epochs=2, min_lr=0.1).table(1.1, steps_per_epoch=2, total_steps=8)
    cosine = [0.1 + 0.5 * (1 + np.cos(np.pi * i / 4)) for i in range(4)]
    np.testing.assert_allclose(table, [0, 1.1 / 3, 2.2 / 3, 1.1, *cosine], rtol=1e-15)
    assert table[3] == table[4] == 1.1
    assert table[-1] > 0.1
    assert table.dtype == np.float64


def test_steps_instead_of_epochs() -> None:
    by_steps = WarmupCosine(warmup_epochs=3, warmup_steps=4).table(1.0, 10, 20)
    np.testing.assert_array_equal(by_steps[:5], [0, 1 / 3, 2 / 3, 1, 1])
    np.testing.assert_array_equal(by_steps, WarmupCosine(warmup_epochs=0.4).table(1.0, 10, 20))


def test_cosine_may_rise() -> None:
    table = WarmupCosine(min_lr=0.2).table(0.05, 5, 60)
    assert table[0] == pytest.approx(0.05)
    assert (np.diff(table) > 0).all()
    assert 0.199 < table[-1] < 0.2


def test_drops_at_milestones() -> None:
    table = MultiStep([2, 3.5], gamma=0.1).table(1.0, steps_per_epoch=2, total_steps=8)
    np.testing.assert_allclose(table, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01], rtol=1e-12)


def test_drops_at_shares_of_any_training() -> None:
    """Whole epochs, as the published code of the pruning study has them."""
    for epochs, edges in ((160, (80, 120)), (243, (121, 182)), (7, (3, 5))):
        table = MultiStep(shares=[0.5, 0.75]).table(1.0, steps_per_epoch=3, total_steps=3 * epochs)
        assert (np.flatnonzero(np.diff(table)) + 1).tolist() == [3 * edge for edge in edges]


def test_every_drop_may_have_its_factor() -> None:
    table = MultiStep([1, 2], gamma=[10.0, 0.2]).table(0.01, steps_per_epoch=1, total_steps=4)
    np.testing.assert_allclose(table, [0.01, 0.1, 0.02, 0.02], rtol=1e-12)
    with pytest.raises(Mistake, match="1 factors for 2 milestones"):
        MultiStep([1, 2], gamma=[0.1]).table(1.0, 1, 4)


def test_drops_and_warm_up() -> None:
    table = MultiStep([1], gamma=0.5, warmup_epochs=1.5).table(4.0, steps_per_epoch=2, total_steps=5)
    np.testing.assert_allclose(table, [0, 2, 2, 2, 2])


def test_drops_all_the_time() -> None:
    table = Staircase(every=1.5, gamma=0.5, warmup_epochs=1).table(4.0, steps_per_epoch=2, total_steps=8)
    np.testing.assert_allclose(table, [0, 4, 4, 2, 2, 2, 1, 1])
    with pytest.raises(ValueError, match="above 0, not 0"):
        Staircase(every=0).table(1.0, 2, 8)


def test_drops_may_wait_for_the_warm_up() -> None:
    schedule = Staircase(every=1, gamma=0.5, warmup_epochs=2, steady_warmup=True)
    table = schedule.table(4.0, steps_per_epoch=2, total_steps=8)
    np.testing.assert_allclose(table, [0, 1, 2, 3, 1, 1, 0.5, 0.5])


def test_warm_up_from_a_factor_ends_before_the_whole_value() -> None:
    table = MultiStep([2], gamma=0.1, warmup_steps=4, warmup_factor=0.2).table(10.0, steps_per_epoch=3, total_steps=8)
    np.testing.assert_allclose(table, [2, 4, 6, 8, 10, 10, 1, 1], rtol=1e-12)


def test_cosine_of_the_whole_training_by_epochs() -> None:
    """Two epochs of warm-up, a cosine of eight epochs from the start on, two at the end with the last value."""
    schedule = WarmupCosine(2, min_lr=0.1, warmup_lr=0.02, whole=True, by_epoch=True, cooldown_epochs=2)
    table = schedule.table(1.1, steps_per_epoch=3, total_steps=30)
    cosine = [0.1 + 0.5 * (1 + np.cos(np.pi * epoch / 8)) for epoch in range(2, 8)]
    epochs = [0.02, 0.02 + 1.08 / 2, *cosine, 0.1, 0.1]
    np.testing.assert_allclose(table, np.repeat(epochs, 3), rtol=1e-12)
    # An epoch that is not finished.
    np.testing.assert_array_equal(schedule.table(1.1, 3, 29), table[:29])
    by_step = WarmupCosine(2, warmup_lr=0.5, whole=True).table(1.0, 2, 8)
    np.testing.assert_allclose(by_step[:5], [0.5, 0.625, 0.75, 0.875, 0.5])


def test_schedules_by_epochs_have_warm_ups_by_epochs() -> None:
    with pytest.raises(ValueError, match="warmup_epochs, not warmup_steps"):
        WarmupCosine(warmup_steps=3, by_epoch=True).table(1.0, 2, 10)


def test_what_leaves_no_cosine_is_shortened() -> None:
    with pytest.warns(Shortened, match=r"the cooldown \(6 steps\) leaves nothing of the training \(10 steps\)"):
        table = WarmupCosine(2, cooldown_epochs=3).table(1.0, 2, 10)
    np.testing.assert_allclose(table, WarmupCosine(2).table(1.0, 2, 10))
    with pytest.warns(Shortened, match="the warm-up .* shortened to 2 steps") as told:
        table = WarmupCosine(30, by_epoch=True).table(1.0, 10, 20)
    np.testing.assert_allclose(table, WarmupCosine(by_epoch=True).table(1.0, 10, 20))
    assert len(told) == 1


def test_constant() -> None:
    np.testing.assert_array_equal(Constant().table(3.0, 1, 3), [3, 3, 3])
    np.testing.assert_array_equal(Constant(warmup_epochs=3).table(3.0, 1, 5), [0, 1.5, 3, 3, 3])


@pytest.mark.parametrize(
    "schedule", [WarmupCosine(2), MultiStep([2], warmup_epochs=1), Staircase(warmup_epochs=2), Constant(2)]
)
@pytest.mark.parametrize(("steps_per_epoch", "total_steps"), [(7, 50), (3, 10)])
def test_one_value_a_step(schedule: Schedule, steps_per_epoch: int, total_steps: int) -> None:
    table = schedule.table(0.3, steps_per_epoch, total_steps)
    assert table.shape == (total_steps,)
    assert table[0] == 0
    assert table.max() == pytest.approx(0.3)
    np.testing.assert_array_equal(schedule.table(0.0, steps_per_epoch, total_steps), np.zeros(total_steps))


@pytest.mark.parametrize(
    "schedule", [WarmupCosine(2), MultiStep([9], warmup_epochs=2), Staircase(warmup_epochs=2), Constant(2)]
)
def test_a_warm_up_as_long_as_the_training_is_shortened(schedule: Schedule) -> None:
    said = r"the warm-up \(50 steps\) leaves nothing of the training \(50 steps\): shortened to 5 steps"
    with pytest.warns(Shortened, match=said):
        table = schedule.table(1.0, steps_per_epoch=25, total_steps=50)
    assert table[0] == 0
    assert (np.diff(table[:5]) > 0).all()
    # After the warm-up, and where nothing drops: as without one.
    np.testing.assert_allclose(table[5], schedule.table(1.0, 25, 5000)[50], rtol=0.01)


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        Constant().table(1.0, steps_per_epoch=0, total_steps=10)
    with pytest.raises(ValueError, match="at least one step"):
        WarmupCosine().table(1.0, steps_per_epoch=1, total_steps=0)
    with pytest.raises(ValueError, match="cannot last -1"):
        Constant(warmup_steps=-1).table(1.0, 1, 10)


def test_power_of_what_is_left() -> None:
    table = Poly(power=2.0, warmup_steps=2, warmup_factor=0.5).table(4.0, steps_per_epoch=1, total_steps=4)
    np.testing.assert_allclose(table, [4 * 0.5, 4 * 0.75**2 * 0.75, 4 * 0.5**2, 4 * 0.25**2], rtol=1e-15)
    by_epochs = Poly(warmup_epochs=1.5).table(1.0, steps_per_epoch=2, total_steps=10)
    left = 1 - np.arange(10) / 10
    np.testing.assert_allclose(by_epochs, left**0.9 * [0, 1 / 3, 2 / 3, *[1] * 7], rtol=1e-15)


def test_published_values_are_the_defaults() -> None:
    np.testing.assert_allclose(Poly().table(2.0, 1, 4), 2 * np.array([1, 0.75, 0.5, 0.25]) ** 0.9, rtol=1e-15)
    # EfficientNet's 0.97 every 2.4 epochs.
    np.testing.assert_allclose(Staircase().table(1.0, 10, 49), [1] * 24 + [0.97] * 24 + [0.97**2], rtol=1e-15)
    np.testing.assert_allclose(MultiStep([1]).table(1.0, 2, 4), [1, 1, 0.1, 0.1], rtol=1e-15)
    np.testing.assert_allclose(MultiStep().table(1.0, 2, 4), [1, 1, 1, 1], rtol=1e-15)
    np.testing.assert_allclose(WarmupCosine().table(1.0, 2, 2), [1, 0.5], rtol=1e-15)


def test_shortest_trainings() -> None:
    np.testing.assert_array_equal(Constant().table(3.0, 1, 1), [3])
    # A warm-up of all steps but one is allowed, of one step it is a step at 0.
    np.testing.assert_array_equal(Constant(warmup_steps=3).table(3.0, 1, 4), [0, 1.5, 3, 3])
    np.testing.assert_array_equal(Poly(power=1.0, warmup_steps=1).table(4.0, 1, 4), [0, 3, 2, 1])
    np.testing.assert_array_equal(WarmupCosine(warmup_steps=1).table(1.0, 1, 2), [0, 1])


def test_a_young_average_forgets() -> None:
    # Mean Teacher's min(1 - 1 / (n + 1), m), and TensorFlow's.
    np.testing.assert_allclose(AverageWarmup().table(0.7, 1, 4), [1 / 2, 2 / 3, 0.7, 0.7], rtol=1e-15)
    np.testing.assert_allclose(AverageWarmup(1, 10).table(0.9, 1, 3), [2 / 11, 3 / 12, 4 / 13], rtol=1e-15)
    with pytest.raises(ValueError, match="0 <= ahead < behind, not 2 and 2"):
        AverageWarmup(2, 2).table(0.9, 1, 3)


def test_a_steady_warm_up_has_the_base_once() -> None:
    table = WarmupCosine(warmup_steps=2, warmup_lr=0.2, steady_warmup=True).table(1.0, 1, 4)
    np.testing.assert_allclose(table, [0.2, 0.6, 1.0, 0.5], rtol=1e-15)


@pytest.mark.parametrize("total_steps", [4, 10, 841])
@pytest.mark.parametrize("options", [{}, {"pct_start": 0.45, "div_factor": 4.0, "final_div_factor": 50.0}])
def test_one_cycle_is_that_of_torch(options: dict[str, float], total_steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], momentum=0.9)
    scheduler = OneCycleLR(optimizer, 0.3, total_steps=total_steps, base_momentum=0.8, max_momentum=0.95, **options)
    lr, momentum = [], []
    for _ in range(total_steps):
        lr.append(scheduler.get_last_lr()[0])
        momentum.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        if len(lr) < total_steps:
            scheduler.step()
    np.testing.assert_allclose(OneCycle(**options).table(0.3, 5, total_steps), lr, rtol=1e-10)
    mirrored = OneCycle(options.get("pct_start", 0.3), div_factor=0.8 / 0.95, final_div_factor=1)
    np.testing.assert_allclose(mirrored.table(0.8, 5, total_steps), momentum, rtol=1e-10)


def test_one_cycle_needs_room_to_rise() -> None:
    with pytest.raises(ValueError, match=r"after 0.3 of 3 steps has no step to rise in"):
        OneCycle().table(1.0, 3, 3)
    with pytest.raises(ValueError, match=r"pct_start 1\.5, div_factor 25\.0"):
        OneCycle(pct_start=1.5).table(1.0, 3, 30)


def test_an_arc_ends_before_the_cosine_does() -> None:
    table = CosineArc(warmup_steps=2).table(2.0, 5, 12)
    assert table[:3].tolist() == [0.0, 1.0, 2.0]
    assert table[-1] == pytest.approx(2.0 * math.cos(7 / 16 * math.pi * 9 / 10))


def test_a_cosine_may_be_longer_than_the_training_or_shorter() -> None:
    longer = WarmupCosine(cosine_epochs=4).table(1.0, 5, 10)
    assert np.array_equal(longer, WarmupCosine().table(1.0, 5, 20)[:10])
    shorter = WarmupCosine(cosine_epochs=1, min_lr=0.1).table(1.0, 5, 10)
    assert np.array_equal(shorter[:5], WarmupCosine(min_lr=0.1).table(1.0, 5, 5))
    assert shorter[5:].tolist() == pytest.approx([0.1] * 5)


def test_stairs_lead_to_the_base_value() -> None:
    table = StairWarmup(milestones=[5], gamma=0.5).table(4.0, steps_per_epoch=2, total_steps=12)
    np.testing.assert_allclose(table, [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 2, 2], rtol=1e-15)
    # Stairs are measured by whole batches and a rest, and milestones are not; a short warm-up overshoots, as published.
    short = StairWarmup(1, [3], batches_per_epoch=3.5).table(4.0, steps_per_epoch=3, total_steps=12)
    np.testing.assert_allclose(short, [2, 4, 4, 6, 6, 4, 4, 4, 4, 0.8, 0.8, 0.8], rtol=1e-15)
    with pytest.raises(ValueError, match="cannot last -1 epochs"):
        StairWarmup(-1).table(1.0, 1, 4)


def test_temperatures_change_by_epoch() -> None:
    tables = [SpanTemperature(policy, 2, 0.5).table(6.5, steps_per_epoch=2, total_steps=7) for policy in (0, 1, 2)]
    np.testing.assert_allclose(tables[0], [6.5, 6.5, 4.5, 4.5, 2.5, 2.5, 0.5], rtol=1e-15)
    np.testing.assert_allclose(tables[1], [6.5, 6.5, 3.75, 3.75, 1, 1, 0.5], rtol=1e-15)
    np.testing.assert_allclose(tables[2], [7 / 3, 7 / 3, 2, 2, 0.5, 0.5, 0.5], rtol=1e-15)
    for schedule in (SpanTemperature(3), SpanTemperature(1, 4), SpanTemperature(2, 0)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="policy 0, 1 or 2, with 1 to 3 epochs of warm-up in a training of 4"):
            schedule.table(1.0, 2, 7)
    assert SpanTemperature().table(10.0, 5, 5).tolist() == [10.0] * 5
