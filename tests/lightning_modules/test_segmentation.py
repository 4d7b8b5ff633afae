"""Losses and metrics of segmentation, on a network whose exits are known."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules import Segmentation, segmentation
from lightning_modules.segmentation import _classes_of_file
from lightning_modules.segmentation_losses import VOID, Ohem, cross_entropy, ohem_cross_entropy
from lightning_modules.segmentation_metrics import SegmentationFindings, Tally, scores
from lightning_modules.segmentation_views import MultiScale, SlidingWindow
from tests.library.processes import averaged, on_two_processes
from tests.library.segmentation import CLASSES, SIZE, Answers, OneByOne, Scenes, trainer


def evaluated(folder: Path, module: Segmentation, data: Scenes) -> dict[str, float]:
    return dict(trainer(folder).validate(module, data, verbose=False)[0])


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    predicted, valid = logits.argmax(1), labels != VOID
    pairs = labels[valid].long() * CLASSES + predicted[valid]
    return torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES)


def test_metrics_of_every_exit(tmp_path: Path) -> None:
    data, module = Scenes(), Segmentation(Answers())
    logged = evaluated(tmp_path, module, data)
    larger = F.pad(data.images, (0, 14, 0, 24))
    for name, logits in (("", data.images), ("_exit0", larger.flip(-2)[..., :40, :50])):
        found = scores(confusion(logits, data.labels))
        assert logged[f"val/miou{name}"] == pytest.approx(found.miou)
        assert logged[f"val/pixel_accuracy{name}"] == pytest.approx(found.pixel_accuracy)
        assert logged[f"val/class_accuracy{name}"] == pytest.approx(found.class_accuracy)
        losses = [cross_entropy(one[None], label[None]) for one, label in zip(logits, data.labels, strict=True)]
        assert logged[f"val/loss{name}"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
        # Of images padded to multiples of 32.
        assert logged[f"val/macs{name}"] == 64 * 64 * CLASSES**2
    assert logged["val/miou"] > 0.4 > logged["val/miou_exit0"]
    assert logged["val/miou_mean"] == pytest.approx((logged["val/miou"] + logged["val/miou_exit0"]) / 2)
    assert module.findings is not None
    assert module.findings.images == 5
    assert torch.equal(module.findings.exits[-1].confusion, confusion(data.images, data.labels))


def test_exits_one_by_one_and_labels_of_another_size(tmp_path: Path) -> None:
    data = Scenes(zoom=2)
    module = Segmentation(OneByOne())
    logged = evaluated(tmp_path, module, data)
    larger = F.pad(data.images, (0, 14, 0, 24))
    coarse = F.avg_pool2d(larger, 2)
    for name, logits in (("", coarse), ("_exit0", coarse.flip(-2))):
        cut = F.interpolate(logits, scale_factor=2, mode="bilinear")[..., :40, :50]
        resized = F.interpolate(cut, size=data.labels.shape[1:], mode="bilinear")
        assert logged[f"val/miou{name}"] == pytest.approx(scores(confusion(resized, data.labels)).miou)
    # The counts add up from exit to exit.
    assert logged["val/macs_exit0"] == 32 * 32 * CLASSES**2
    assert logged["val/macs"] == 2 * 32 * 32 * CLASSES**2


@pytest.mark.parametrize("scales", [None, MultiScale([1.0], flip=True), MultiScale([1.0], average="exp_logits")])
@pytest.mark.parametrize("window", [None, SlidingWindow((32, 32), (20, 20))])
def test_windows_and_scales_of_a_pointwise_network_change_nothing(
    window: SlidingWindow | None, scales: MultiScale | None, tmp_path: Path
) -> None:
    data = Scenes()
    plain = evaluated(tmp_path, Segmentation(Answers(1)), data)
    logged = evaluated(tmp_path, Segmentation(Answers(1), sliding_window=window, multi_scale=scales), data)
    assert logged["val/miou"] == pytest.approx(plain["val/miou"])
    assert logged["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-5)
    views = 2 if scales else 1
    # Windows of 32x32: two down and two to the right; HRNet's windows are for scales above 1.
    in_windows = window is not None and (scales is None or scales.average == "softmax")
    pixels = 4 * 32 * 32 if in_windows else 64 * 64
    assert logged["val/macs"] == views * pixels * CLASSES**2


def test_absent_classes_are_an_option(tmp_path: Path) -> None:
    data = Scenes()
    data.images[:, 2] = -9.0
    data.labels[data.labels == 2] = 1
    without = evaluated(tmp_path, Segmentation(Answers(1)), data)["val/miou"]
    zero = evaluated(tmp_path, Segmentation(Answers(1), absent="zero"), data)["val/miou"]
    assert zero == pytest.approx(without * 2 / 3)


@pytest.mark.parametrize("given", ["sum", "mean", [0.4, 1.0]])
def test_exits_are_weighted_and_the_last_is_mined(given: Any, tmp_path: Path) -> None:
    data = Scenes(2)
    data.class_weights = [0.5, 1.0, 2.0]
    ohem = Ohem(0.6, 100)
    module = Segmentation(Answers(), exit_weights=given, ohem=ohem)
    runner = trainer(tmp_path, log_every_n_steps=1)
    runner.fit(module, data)
    weights = torch.tensor(data.class_weights)
    first = cross_entropy(data.images.flip(-2), data.labels, weights).item()
    last = ohem_cross_entropy(data.images, data.labels, ohem, weights).item()
    a, b = {"sum": (1, 1), "mean": (0.5, 0.5)}.get(given if isinstance(given, str) else "", given)
    logged = {name: value.item() for name, value in runner.logged_metrics.items()}
    assert logged["train/loss_exit0"] == pytest.approx(a * first, rel=1e-5)
    assert logged["train/loss_exit1"] == pytest.approx(b * last, rel=1e-5)
    assert logged["train/loss"] == pytest.approx(a * first + b * last, rel=1e-5)
    right = (data.images.argmax(1) == data.labels)[data.labels != VOID].float().mean().item()
    assert logged["train/pixel_accuracy"] == pytest.approx(right)


def test_predictions_have_the_size_of_the_file(tmp_path: Path) -> None:
    data = Scenes(3, zoom=2)
    outputs = trainer(tmp_path).predict(Segmentation(Answers()), data)
    assert outputs is not None
    predicted = [labels for batch in outputs for labels in batch["predicted"]]
    expected = F.interpolate(data.images, size=data.labels.shape[1:], mode="bilinear").argmax(1)
    assert torch.equal(torch.stack(predicted), expected.to(torch.uint8))


def test_a_look_shows_each_exit() -> None:
    data, module = Scenes(1), Segmentation(OneByOne())
    first, last = module.look(data.images[0], SIZE)
    assert last.predicted.shape == last.confidence.shape == SIZE
    assert last.confidence.min() > 1 / CLASSES
    assert last.computed is not None
    assert last.computed.shape == SIZE
    share = (data.images[0, 0] > 0).float().mean().item()
    assert last.computed.mean().item() == pytest.approx(share, abs=0.03)
    assert not torch.equal(first.predicted, last.predicted)
    assert module.network.training


def test_other_classes_than_the_data_has_are_refused(tmp_path: Path) -> None:
    class Four(Answers):
        num_classes = 4

    with pytest.raises(ValueError, match="the network has 4 classes but the data has 3"):
        evaluated(tmp_path, Segmentation(Four()), Scenes())
    data = Scenes()
    data.class_weights = [1.0]
    with pytest.raises(ValueError, match="1 class weights for 3 classes"):
        evaluated(tmp_path, Segmentation(Answers()), data)
    data = Scenes()
    data.num_classes = 2
    with pytest.raises(ValueError, match="exit 0 of the network returns 3 logits, expected 2"):
        evaluated(tmp_path, Segmentation(Answers(), num_classes=2), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": nn.Conv2d(3, 3, 1)}, "Conv2d has no attribute num_classes"),
        ({"normalisation": "classes"}, "one of weights, pixels, not 'classes'"),
        ({"absent": "nan"}, "one of exclude, zero, not 'nan'"),
        ({"exit_weights": [-1.0]}, "mean, sum or a number for each exit"),
        ({"lr_multipliers": {"gate": 2.0}}, "no parameter's name contains 'gate'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segmentation(**{"network": Answers()} | options)


def test_bad_evaluations_are_refused() -> None:
    with pytest.raises(ValueError, match="scales above 0, not"):
        MultiScale([])
    with pytest.raises(ValueError, match="one of softmax, exp_logits, not 'mean'"):
        MultiScale(average="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive crop and stride"):
        SlidingWindow((32, 32), (0, 32))


def test_everything_decays_if_asked() -> None:
    groups = Segmentation(Answers(), decay_all=True).main.groups(0.1, 1e-4)
    assert [group["weight_decay"] for group in groups] == [1e-4]
    groups = Segmentation(Answers(), lr_multipliers={"bias": 2.5}).main.groups(0.1, 1e-4)
    assert sorted((group["lr"], group["weight_decay"]) for group in groups) == [(0.1, 1e-4), (0.25, 0.0)]


def _on_process(rank: int, ranks: int, folder: str, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    data, module = Scenes(5), Segmentation(Answers())
    module.eval()
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=ranks, datamodule=data, sanity_checking=False, predicting=False
    )
    module.log = lambda *_, **__: None  # type: ignore[assignment]
    # The third process has no image at all.
    mine = list(range(len(data.images)))[rank :: ranks - 1] if rank < ranks - 1 else []
    with torch.no_grad():
        for i in mine:
            part = slice(i, i + 1)
            module.validation_step(
                {"image": data.images[part], "label": data.labels[part], "index": torch.tensor([i])}, i
            )
    module.on_validation_epoch_end()
    assert module.findings is not None
    found = module.findings
    results.put((found.images, found.exits[-1].confusion.tolist(), found.macs))
    results.close()
    results.join_thread()
    os._exit(0)


def test_metrics_are_exact_over_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = 3
    processes = [context.Process(target=_on_process, args=(r, ranks, str(tmp_path), results)) for r in range(ranks)]
    for process in processes:
        process.start()
    reports = [results.get(timeout=240) for _ in range(ranks)]
    for process in processes:
        process.join(60)
    data = Scenes(5)
    assert reports == [(5, confusion(data.images, data.labels).tolist(), [64 * 64 * CLASSES**2] * 2)] * ranks


def test_two_processes_train_with_the_loss_of_one(tmp_path: Path) -> None:
    pictures = Scenes(2).images
    labels = torch.randint(CLASSES, (2, *pictures.shape[-2:]), generator=torch.Generator().manual_seed(0))
    labels[0, :20] = 255

    def loss(images: slice) -> dict[str, torch.Tensor]:
        module = Segmentation(Answers())
        module.total_loss = lambda losses, *_: sum(losses.values())  # type: ignore[assignment]
        return {"loss": module.training_step({"image": pictures[images], "label": labels[images]}, 0)}

    two = averaged(on_two_processes(lambda rank: loss(slice(rank, rank + 1)), tmp_path))
    torch.testing.assert_close(two["loss"], loss(slice(None))["loss"].detach())


def test_scores_by_hand() -> None:
    # Class 2 is only predicted, class 3 does not occur at all.
    matrix = torch.tensor([[6, 2, 0, 0], [1, 3, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    exclude, zero = scores(matrix), scores(matrix, "zero")
    assert exclude.iou[:3].tolist() == pytest.approx([6 / 9, 3 / 7, 0.0])
    assert exclude.iou[3].isnan()
    assert exclude.miou == pytest.approx((6 / 9 + 3 / 7) / 3)
    assert zero.miou == pytest.approx((6 / 9 + 3 / 7) / 4)
    assert exclude.class_accuracy == pytest.approx((6 / 8 + 3 / 5) / 2)
    assert zero.class_accuracy == pytest.approx((6 / 8 + 3 / 5) / 4)
    assert exclude.pixel_accuracy == zero.pixel_accuracy == 9 / 13
    with pytest.raises(ValueError, match="one of exclude, zero"):
        scores(matrix, "nan")  # type: ignore[arg-type]
    rows = SegmentationFindings({}, list("abcd"), [zero, exclude], [1.0, 2.0], 1).rows(["iou"])
    assert rows[0] == ["class", "pixels", "iou", "iou_exit0"]
    assert rows[1] == ["a", "8", "0.6667", "0.6667"]
    assert rows[4] == ["d", "0", "", "0.0000"]
    assert rows[5][:2] == ["mean", "13"]


def test_an_empty_tally_adds_nothing() -> None:
    tally = Tally()
    tally.count(0, torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), 2, torch.tensor(0.5))
    tally.images = 1
    total = Tally.sum([Tally(), tally, tally])
    assert total.images == 2
    assert total.confusion[0].tolist() == [[2, 2], [0, 0]]
    assert total.losses[0].item() == 1.0


@pytest.mark.parametrize("size", [(37, 53), (200, 90), (11, 400), (9, 14)])
def test_classes_of_a_large_file_are_found_in_bands(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 5, 9, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = _classes_of_file(logits, size)
    assert torch.equal(whole, F.interpolate(logits, size, mode="bilinear").argmax(1)[0].to(torch.uint8))
    monkeypatch.setattr(segmentation, "BAND", 5 * size[1] * 4)
    assert torch.equal(_classes_of_file(logits, size), whole)
