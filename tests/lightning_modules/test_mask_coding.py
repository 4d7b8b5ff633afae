"""Mask codes as an experiment: what is fitted, on which objects, what is logged, kept and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Trainer
from pycocotools import mask as coco_mask
from torch import Tensor

from callbacks import Checkpoints
from callbacks.mask_code_curve import MaskCodeCurve
from lightning_modules.mask_coding import MaskCoding
from models.layers.mask_code import MaskCode, crop, mask_iou
from models.layers.mask_code_baselines import GridCode, PrincipalCode
from tests.library.batches import Batches
from tests.library.mask_blobs import blobs
from tests.library.reports import placed

SIZE = 16
BOX = (4.0, 2.0, 20.0, 18.0)


class Scenes(lightning.LightningDataModule):
    """Six images of two objects each, and in evaluations one without any; the annotations also have a crowd."""

    batch_size = 2

    def __init__(self) -> None:
        super().__init__()
        self.masks = blobs(12, SIZE, seed=4)

    def objects(self, image: int) -> Tensor:
        canvas = torch.zeros(2, 24, 30, dtype=torch.bool)
        canvas[:, 2:18, 4:20] = self.masks[2 * image : 2 * image + 2]
        return canvas

    def batches(self, training: bool) -> Batches:
        targets: list[dict[str, Any]] = [{"image_id": i, "original_size": (24, 30)} for i in range(6)]
        if training:
            for i, target in enumerate(targets):
                target |= {"masks": self.objects(i), "boxes": torch.tensor([BOX] * 2)}
        else:
            targets.append({"image_id": 99, "original_size": (5, 5)})
        rows = [targets[i : i + 2] for i in range(0, len(targets), 2)]
        return Batches([{"target": row, "index": torch.arange(len(row))} for row in rows])  # type: ignore[dict-item]

    def train_dataloader(self) -> Batches:
        return self.batches(training=True)

    def val_dataloader(self) -> Batches:
        return self.batches(training=False)

    def ground_truth(self, split: str) -> dict[str, Any]:
        records: list[dict[str, Any]] = []
        for image in range(6):
            for mask in self.objects(image):
                code = coco_mask.encode(mask.numpy().astype("uint8", order="F"))
                records.append({"image_id": image, "iscrowd": 0, "segmentation": code, "bbox": [4, 2, 16, 16]})
        polygon = [[0, 0, 30, 0, 30, 24, 0, 24]]
        records.append({"image_id": 0, "iscrowd": 1, "segmentation": polygon, "bbox": [0, 0, 30, 24]})
        return {"annotations": records}


def fit(network: Any, folder: Path, **options: Any) -> tuple[MaskCoding, Trainer]:
    module, checkpoints = MaskCoding(network), Checkpoints()
    checkpoints.folder = folder / "checkpoints"
    report = placed(MaskCodeCurve(), folder / "plots")
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[report, checkpoints],
        **options,
    )
    trainer.fit(module, Scenes())
    return module, trainer


@pytest.mark.parametrize("code", [MaskCode(16, SIZE), GridCode(16, SIZE)])
def test_the_metric_is_the_mean_over_objects(code: Any, tmp_path: Path) -> None:
    _, trainer = fit(code, tmp_path, limit_train_batches=1)
    masks = Scenes().masks
    expected = mask_iou(code.masks(code.encode(masks)), masks).mean()
    assert 0.5 < expected < 1
    torch.testing.assert_close(trainer.callback_metrics["val/mask_iou"], expected)
    assert (tmp_path / "plots/mask_code_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "checkpoints/best.ckpt").exists()


def test_components_come_from_the_training_objects(tmp_path: Path) -> None:
    module, trainer = fit(PrincipalCode(11, SIZE), tmp_path)
    expected = PrincipalCode(11, SIZE)
    expected.fit(Scenes().masks)
    assert isinstance(module.network, PrincipalCode)
    torch.testing.assert_close(module.network.components, expected.components)
    # The same objects as in training, of which there are but eleven and their mean to keep.
    assert trainer.callback_metrics["val/mask_iou"] == 1
    saved = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert saved["state_dict"]["network.components"].equal(expected.components)
    assert "seen_masks" not in saved


def test_objects_that_are_not_fitted_yet_are_saved() -> None:
    module = MaskCoding(PrincipalCode(4, SIZE))
    batch = Scenes().batches(training=True).batches[0]
    module.training_step(batch, 0)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    resumed = MaskCoding(PrincipalCode(4, SIZE))
    resumed.on_load_checkpoint(checkpoint)
    resumed.training_step(batch, 1)
    again: dict[str, Any] = {}
    resumed.on_save_checkpoint(again)
    assert again["seen_masks"].equal(Scenes().masks[:4].repeat(2, 1, 1))


def test_polygons_are_drawn() -> None:
    module = MaskCoding(MaskCode(4, SIZE))
    module._annotations = {7: [{"segmentation": [[2, 2, 10, 2, 10, 6, 2, 6]], "bbox": [2, 2, 16, 4]}]}
    found = module._annotated({"image_id": 7, "original_size": (20, 20)})
    rectangle = torch.zeros(1, 20, 20, dtype=torch.bool)
    rectangle[:, 2:6, 2:10] = True
    assert found.equal(crop(rectangle, torch.tensor([[2.0, 2, 18, 6]]), SIZE))
