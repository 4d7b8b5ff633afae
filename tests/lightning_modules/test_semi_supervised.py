"""Learning from few labels: whose labels, who is evaluated, and where a killed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import albumentations as A
import lightning
import pytest
import torch
from lightning.pytorch import Callback

from callbacks import Rule, Smoothing, StepSeed
from datamodules import Digits, FewLabels, View
from datamodules.transforms import CTAugment
from lightning_modules import AverageWarmup, FixMatch, MeanTeacher
from lightning_modules.semi_supervised import SemiSupervised
from models.classifiers import ShakeShake, WideResNet
from models.mistakes import Mistake
from tests.library.recorder import SaveEverywhere

KINDS = {
    "fixmatch": lambda: FixMatch(network(), threshold=0.3, optimizer=sgd),
    "fixmatch of a teacher": lambda: FixMatch(network(), threshold=0.3, labels_from="teacher", optimizer=sgd),
    "mean teacher": lambda: MeanTeacher(network(), unlabelled_weight=5.0, ramp_epochs=2, optimizer=sgd),
    "mean teacher of two heads": lambda: MeanTeacher(two_heads(), unlabelled_weight=5.0, optimizer=sgd),
}


def network() -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(10, 1, 10, base_width=4, norm_momentum=0.1)


def two_heads() -> ShakeShake:
    torch.manual_seed(0)
    return ShakeShake(8, 4, two_heads=True)


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def data() -> FewLabels:
    moved = [A.Affine(translate_percent=(-0.1, 0.1), p=1.0)]
    return FewLabels(Digits(batch_size=20), [View([]), View(moved)], 4, unlabelled_ratio=10)


def controlled() -> FewLabels:
    return FewLabels(Digits(batch_size=20), [View([]), View([CTAugment(decay=0.8)])], 4, unlabelled_ratio=10)


def fit(
    module: SemiSupervised,
    *callbacks: Callback,
    resume: Path | None = None,
    images: FewLabels | None = None,
    smoothing: Smoothing | None = None,
    **limits: Any,
) -> FewLabels:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    rule = Rule(momentum=0.9, momentum_schedule=AverageWarmup())
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[StepSeed(3), smoothing or Smoothing(rule, batch_norm="copy"), *callbacks],
        num_sanity_val_steps=0,
        **quiet,
        **{"max_steps": 4, "limit_val_batches": 0} | limits,  # type: ignore[arg-type]
    )
    images = images or data()
    trainer.fit(module, images, ckpt_path=resume, weights_only=True)
    return images


def test_statistics_of_a_teacher_may_be_estimated_over_all_images_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    inputs = SemiSupervised.inputs

    def recording(self: SemiSupervised, batch: Any) -> tuple[Any, ...]:
        (images,) = inputs(self, batch)
        parts = images.split([20, 200, 200])
        for part, given in zip(parts, [batch["labelled"]["image"], *batch["train"]["image"][0]], strict=True):
            torch.testing.assert_close(part, given)
        seen.append(images)
        return (images,)

    monkeypatch.setattr(SemiSupervised, "inputs", recording)
    module = KINDS["fixmatch of a teacher"]()
    fit(module, smoothing=Smoothing(Rule(0.5), "recalibrate"), max_epochs=1, max_steps=-1)
    with torch.no_grad():
        expected = torch.stack([module.teacher.stem(images).mean((0, 2, 3)) for images in seen]).mean(0)
    first = next(each for each in module.teacher.modules() if isinstance(each, torch.nn.BatchNorm2d))
    torch.testing.assert_close(first.running_mean, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole, again = KINDS[kind](), KINDS[kind]()
    fit(whole, SaveEverywhere(tmp_path), max_steps=8)
    fit(again, resume=tmp_path / "batch3.ckpt", max_steps=8)
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())
    saved = torch.load(tmp_path / "batch3.ckpt", weights_only=True)
    assert saved["FewLabels"]["labelled"].shape == (40,)


@pytest.mark.parametrize("place", ["batch3", "batch6", "epoch0"])
def test_rates_of_augmentation_go_on_where_they_were(place: str, tmp_path: Path) -> None:
    """In the middle of an epoch, behind its last batch and behind its end."""
    whole, again = KINDS["fixmatch"](), KINDS["fixmatch"]()
    images = fit(whole, SaveEverywhere(tmp_path), max_steps=9, images=controlled())
    resumed = fit(again, resume=tmp_path / f"{place}.ckpt", max_steps=9, images=controlled())
    assert images.rates is not None
    assert resumed.rates is not None
    assert torch.equal(images.rates.learnt, resumed.rates.learnt)
    assert torch.equal(images.rates.drawn, resumed.rates.drawn)
    assert images.rates.learnt.min() < images.rates.drawn.min() < 1.0
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())


def test_rates_are_what_the_teacher_recognises() -> None:
    module, images = KINDS["fixmatch"](), controlled()
    # The teacher says that everything is a seven, whatever the student thinks of it.
    for parameter in module.teacher.head.parameters():
        torch.nn.init.zeros_(parameter)
    module.teacher.head.bias.data[7] = 50.0
    images.trainer = module.trainer = None  # type: ignore[assignment]
    module._data = images
    batch = images.on_after_batch_transfer(next(iter(images.train_dataloader())), 0)["labelled"]
    statistics = {name: value.clone() for name, value in module.teacher.named_buffers()}
    module.probe(batch)
    expected = torch.ones_like(images.rates.learnt)  # type: ignore[union-attr]
    for bins, label in zip(batch["policy"].tolist(), batch["label"].tolist(), strict=True):
        for used in bins:
            if used >= 0:
                expected[used] = expected[used] * 0.8 + (label == 7) * 0.2
    torch.testing.assert_close(images.rates.learnt, expected)  # type: ignore[union-attr]
    assert module.teacher.training
    assert all(torch.equal(value, statistics[name]) for name, value in module.teacher.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_is_evaluated(kind: str) -> None:
    module, images = KINDS[kind](), data()
    for parameter in module.teacher.head.parameters():
        torch.nn.init.zeros_(parameter)
    module.teacher.head.bias.data[7] = 1.0
    found = module.evaluate(images.val_dataloader(), data=images).metrics
    sevens = sum(1 for batch in images.val_dataloader() for label in batch["label"] if label == 7)
    assert float(found["top1"]) == pytest.approx(sevens / 180)
    assert "top1_student" in found
    assert float(found["top1_student"]) != float(found["top1"])


@pytest.mark.parametrize(("threshold", "rate"), [(0.0, 1.0), (1.0, 0.0)])
def test_sure_labels_are_counted(threshold: float, rate: float) -> None:
    """With a threshold of 0 every label counts, with one of 1 none does."""
    found: dict[str, float] = {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            found.update({name: float(value) for name, value in trainer.callback_metrics.items()})

    fit(FixMatch(network(), threshold=threshold, optimizer=sgd), Watch(), max_steps=1, log_every_n_steps=1)
    assert found["train/mask_rate"] == rate
    assert found["train/threshold"] == threshold
    assert (found["train/loss_pseudo"] > 0) == (rate > 0)


def test_the_weight_of_the_teacher_rises() -> None:
    module = KINDS["mean teacher"]()
    weights: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            weights.append(pl_module.quantities["consistency_weight"].at(trainer.global_step - 1))

    # Six batches an epoch.
    fit(module, Watch(), max_steps=14)
    e = torch.e
    expected = [5 * e**-5] * 6 + [5 * e**-1.25] * 6 + [5.0] * 2
    assert weights == pytest.approx(expected)


def test_two_heads_are_tied_and_compared_each_with_its_own() -> None:
    module, images = MeanTeacher(two_heads(), unlabelled_weight=5.0, ramp_epochs=0, tie_weight=0.5), data()
    batch = images.on_after_batch_transfer(next(iter(images.train_dataloader())), 0)
    module.teacher.head.load_state_dict(module.teacher.consistency_head.state_dict())
    found: dict[str, float] = {}
    module.total_loss = lambda losses, metrics, size: found.update(  # type: ignore[method-assign]
        {name: float(value) for name, value in losses.items()}
    )
    # Without mixing, both heads see the same features.
    module.eval()
    module.network.head.weight.data.zero_()
    module.network.head.bias.data.zero_()
    module.training = True
    module.training_step(batch, 0)
    labelled, own = batch["labelled"]["image"], batch["train"]["image"][0][0]
    logits = module.network.both_heads(torch.cat([labelled, own]))[1]
    assert found["ce"] == pytest.approx(float(torch.tensor(10.0).log()))
    assert found["tie"] == pytest.approx(0.5 * float(logits.square().sum()) / 10 / len(logits), rel=1e-5)
    teacher = module.teacher(torch.cat([labelled, batch["train"]["image"][0][1]]))
    distance = (logits.softmax(1) - teacher.softmax(1)).square().sum() / 10 / len(logits)
    assert found["consistency"] == pytest.approx(5 * float(distance), rel=1e-4)


def test_few_labels_go_far() -> None:
    module = FixMatch(network(), threshold=0.8, optimizer=sgd)
    fit(module, max_steps=60)
    images = data()
    trained = float(module.evaluate(images.val_dataloader(), data=images).metrics["top1"])
    untrained = FixMatch(network(), optimizer=sgd)
    before = float(untrained.evaluate(images.val_dataloader(), data=images).metrics["top1"])
    assert trained > 0.6 > 0.3 > before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixMatch(network(), threshold=1.5), "threshold is a probability"),
        (lambda: FixMatch(network(), labels_from="ema"), "labels_from is student or teacher, not 'ema'"),  # type: ignore[arg-type]
        (lambda: MeanTeacher(network(), consistency="l1"), "consistency is mse or kl, not 'l1'"),  # type: ignore[arg-type]
    ],
)
def test_impossible_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(Mistake, match=message):
        make()


def test_labels_alone_are_refused() -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet)  # type: ignore[arg-type]
    with pytest.raises(Mistake, match=r"put the data module into datamodules\.FewLabels with two views"):
        trainer.fit(KINDS["fixmatch"](), Digits(batch_size=64))
