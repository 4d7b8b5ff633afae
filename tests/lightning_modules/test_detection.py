"""The detection task with a network that costs nothing: losses, groups, metrics, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Trainer

from callbacks import Cost
from lightning_modules import Detection
from lightning_modules.coco_metrics import CocoEvaluation
from tests.library.toy_detector import CATEGORY_IDS, ToyDetector, ToyScenes


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": 1, **options},
    )


def evaluated(module: Detection, folder: Path, data: ToyScenes | None = None, **options: Any) -> dict[str, float]:
    results = trainer(folder, **options).validate(module, data or ToyScenes(), verbose=False)
    return dict(results[0]) if results else {}


def test_every_loss_is_logged_by_name_and_penalties_are_added(tmp_path: Path) -> None:
    module = Detection(ToyDetector())
    module.penalties["budget"] = lambda: 2.0 * module.network.head.bias.square().sum()
    run = trainer(tmp_path, log_every_n_steps=1)
    run.fit(module, ToyScenes())
    logged = run.logged_metrics
    terms = [logged[f"train/loss_{name}"] for name in ("count", "size", "budget")]
    torch.testing.assert_close(logged["train/loss"], torch.stack(terms).sum())
    assert all(term > 0 for term in terms)


def test_learning_rates_and_decay_go_by_name() -> None:
    module = Detection(ToyDetector(), lr_multipliers={"backbone": 0.1, "bias": 2.0}, decay_all=True)
    groups = module.main.groups(1.0, 0.05)
    lr = {name: group["lr"] for group in groups for name in group["param_names"]}
    # The first text that fits counts.
    assert lr == {"backbone.weight": 0.1, "backbone.bias": 0.1, "head.weight": 1.0, "head.bias": 2.0}
    assert {group["weight_decay"] for group in groups} == {0.05}
    assert {group["weight_decay"] for group in Detection(ToyDetector()).main.groups(1.0, 0.05)} == {0.05, 0.0}


def test_multipliers_that_fit_nothing_or_are_not_positive_are_refused() -> None:
    with pytest.raises(ValueError, match="contains 'neck'; they begin with backbone, head"):
        Detection(ToyDetector(), lr_multipliers={"neck": 0.1})
    with pytest.raises(ValueError, match="factor 0, which must be above 0"):
        Detection(ToyDetector(), lr_multipliers={"backbone": 0})


@pytest.mark.parametrize("has_masks", [True, False])
def test_metrics_are_those_of_the_results_in_original_pixels(has_masks: bool, tmp_path: Path) -> None:
    module = Detection(ToyDetector(has_masks))
    metrics = evaluated(module, tmp_path)
    kinds = ["box", "mask"] if has_masks else ["box"]
    assert len(metrics) == 12 * len(kinds)
    assert module.monitor == ("val/mask_ap" if has_masks else "val/box_ap")
    assert module.findings is not None
    assert [each.size for each in module.findings.images] == [ToyScenes().size(i) for i in range(6)][::-1]
    again = CocoEvaluation(ToyScenes().ground_truth("val"), CATEGORY_IDS, module.kinds).evaluate(module.findings.images)
    for name, value in again.metrics.items():
        assert metrics[f"val/{name}"] == pytest.approx(value, abs=1e-6)
    # Every first object has the box that is always predicted.
    assert metrics["val/box_ap"] > 0.1


def test_only_evaluated_images_count(tmp_path: Path) -> None:
    module = Detection(ToyDetector())
    part = evaluated(module, tmp_path, limit_val_batches=1)
    assert module.findings is not None
    assert [each.image_id for each in module.findings.images] == [99, 100]
    truth = ToyScenes().ground_truth("val")
    expected = CocoEvaluation(truth, CATEGORY_IDS, ["box", "mask"]).evaluate(module.findings.images).metrics
    assert part["val/box_ap"] == pytest.approx(expected["box_ap"])
    assert part["val/box_ap"] != pytest.approx(evaluated(module, tmp_path)["val/box_ap"])


def test_filled_boxes_are_masks(tmp_path: Path) -> None:
    module = Detection(ToyDetector(has_masks=False), filled_boxes=True)
    metrics = evaluated(module, tmp_path)
    assert module.monitor == "val/box_ap"
    # The toy's objects fill their boxes.
    assert metrics["val/mask_ap"] == pytest.approx(metrics["val/box_ap"], abs=1e-6)


def test_no_validation_data(tmp_path: Path) -> None:
    class WithoutValidation(ToyScenes):
        def val_dataloader(self) -> list[Any]:
            return []

    assert evaluated(Detection(ToyDetector()), tmp_path, WithoutValidation()) == {}
    run = trainer(tmp_path)
    run.fit(Detection(ToyDetector()), WithoutValidation())
    assert run.global_step == 3


def test_diverged_predictions_stop_with_the_sample(tmp_path: Path) -> None:
    module = Detection(ToyDetector())
    with torch.no_grad():
        module.network.head.bias[1] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 3 predictions for val/0\.png .* not finite"):
        evaluated(module, tmp_path)


def test_a_trial_before_training_is_no_evaluation(tmp_path: Path) -> None:
    module = Detection(ToyDetector())
    trainer(tmp_path, limit_train_batches=1, check_val_every_n_epoch=2).fit(module, ToyScenes())
    assert module.findings is None


def test_masks_that_were_promised_must_come(tmp_path: Path) -> None:
    network = ToyDetector(has_masks=False)
    module = Detection(network, filled_boxes=True)
    module.filled_boxes = False
    with pytest.raises(ValueError, match="says that it has masks, but its predictions have none"):
        evaluated(module, tmp_path)


def test_classes_must_agree(tmp_path: Path) -> None:
    class FourClasses(ToyScenes):
        num_classes = 4

    with pytest.raises(ValueError, match="the network has 3 classes but the data has 4"):
        evaluated(Detection(ToyDetector()), tmp_path, FourClasses())
    with pytest.raises(ValueError, match="no attribute num_classes"):
        Detection(torch.nn.Linear(2, 2))


def test_results_do_not_depend_on_what_is_restored(tmp_path: Path) -> None:
    module = Detection(ToyDetector())
    run = trainer(tmp_path)
    run.fit(module, ToyScenes())
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["category_ids"] == CATEGORY_IDS
    fresh = Detection(ToyDetector())
    loaded = trainer(tmp_path).validate(fresh, ToyScenes(), tmp_path / "a.ckpt", verbose=False, weights_only=True)[0]
    assert loaded == pytest.approx(evaluated(module, tmp_path))


def test_cost_of_a_list_of_images(tmp_path: Path) -> None:
    cost, module = Cost(), Detection(ToyDetector())
    evaluated(module, tmp_path, callbacks=[cost])
    # Two layers for an image: 3 x 4 and 4 x 3 multiply-adds.
    assert cost.measure(module.network) == {"params": 31, "macs": 24, "macs_samples": 2}


def test_without_a_data_set_prediction_uses_the_checkpoint(tmp_path: Path) -> None:
    class OnlyImages(lightning.LightningDataModule):
        num_classes = 0

        def predict_dataloader(self) -> Any:
            return ToyScenes().loader()

        def sample_name(self, split: str, index: int) -> str:
            return str(index)

    module = Detection(ToyDetector())
    module.on_load_checkpoint({"category_ids": CATEGORY_IDS})
    batches = trainer(tmp_path).predict(module, OnlyImages())
    results = [each for batch in batches or [] for each in batch["results"]]
    assert [each.image_id for each in results] == list(range(6))
    assert module.category_ids == CATEGORY_IDS
