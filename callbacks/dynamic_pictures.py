"""What a dynamic network decides for which images: kernels, regions, resolutions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from callbacks.drawing import save
from callbacks.dynamic_drawing import choices_by_class, kernel_attention
from callbacks.exit_drawing import exit_sheet
from callbacks.pictures import MOST_CLASSES, show
from callbacks.region_drawing import region_overlay
from models.classifiers.drnet import DRNet
from models.decisions import noted

IMAGES_PER_CHOICE = 8


class DynamicPictures(Callback):
    """Draws what dynamic layers decided in an evaluation, of `test`, `validate` and the test that ends a `fit`.

    - `kernel_attention.png`: mean coefficients of CondConv and Dynamic Convolution by class;
    - `regions/<layer>.png`: where DRConv applies which kernel;
    - `resolutions.png` and `resolutions_by_class.png`: the images that DRNet classifies at each resolution.

    Networks without such layers it leaves alone, and tasks whose evaluation steps do not return `index`, `label` and
    `logits`, as `Classification` does. Compiled layers show nothing.

    Args:
        folder: where the pictures go; None draws nothing.
        images: images under region maps, of as many classes as possible. With several processes they are those of the
            first.
        region_layers: DRConv layers that are drawn, evenly over the network's depth.
    """

    def __init__(self, folder: Path | None = None, images: int = 6, region_layers: int = 4) -> None:
        self.folder = folder
        self.images = images
        self.region_layers = region_layers
        self._start()

    def _start(self) -> None:
        # Of each layer, sums of coefficients [K, n]; of all, images of each class [K, 1].
        self._coefficients: dict[str, Tensor] = {}
        self._samples: Tensor | None = None
        # Index, choice, label and prediction of every image [B, 4].
        self._choices: list[Tensor] = []
        # Input images, and of each layer their regions.
        self._images: list[np.ndarray] = []
        self._regions: dict[str, list[np.ndarray]] = {}
        self._shown: Counter[int] = Counter()

    def _look(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        network = getattr(pl_module, "network", None)
        if self.folder is None or not isinstance(network, nn.Module):
            return
        if not isinstance(outputs, dict) or not {"index", "label", "logits"} <= outputs.keys():
            return
        label, classes = outputs["label"], outputs["logits"].shape[1]
        mixtures, region_layers = {}, {}
        for name, decision in noted(network).items():
            # Layers may have decided for another batch, as far as its size tells.
            if len(decision.values) != len(label):
                continue
            if decision.kind == "mixture":
                mixtures[name] = decision.values
            elif decision.kind == "map":
                region_layers[name] = decision.values
            elif decision.kind == "choice":
                columns = [outputs["index"], decision.values, label, outputs["logits"].argmax(1)]
                self._choices.append(torch.stack(columns, 1))
        if mixtures and classes <= MOST_CLASSES:
            self._count(mixtures, F.one_hot(label, classes).float())
        if region_layers and trainer.is_global_zero:
            self._keep_regions(trainer, _evenly(region_layers, self.region_layers), label, batch["image"])

    def _count(self, mixtures: dict[str, Tensor], member: Tensor) -> None:
        for name, coefficients in mixtures.items():
            sums = member.T @ coefficients.float()
            self._coefficients[name] = self._coefficients[name] + sums if name in self._coefficients else sums
        samples = member.sum(0)[:, None]
        self._samples = samples if self._samples is None else self._samples + samples

    def _keep_regions(self, trainer: Trainer, layers: dict[str, Tensor], label: Tensor, images: Tensor) -> None:
        if len(self._images) >= self.images:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        # Splits may be sorted by class.
        most = -(-self.images // len(data.class_names))
        for i, k in enumerate(label.tolist()):
            if len(self._images) < self.images and self._shown[k] < most:
                self._shown[k] += 1
                pixels = images[i].float().permute(1, 2, 0).cpu().numpy() * data.std + data.mean
                self._images.append((255 * pixels).round().clip(0, 255).astype(np.uint8))
                for name, regions in layers.items():
                    self._regions.setdefault(name, []).append(regions[i].cpu().numpy())

    def _finish(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if self.folder is None or trainer.sanity_checking:
            return
        self._draw_kernels(trainer, pl_module, split)
        self._draw_regions(trainer, pl_module, split)
        self._draw_choices(trainer, pl_module, split)
        self._start()

    def _draw_kernels(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        # The first process has samples if any has; others add what they have, if only nothing.
        shapes = trainer.strategy.broadcast({name: tuple(sums.shape) for name, sums in self._coefficients.items()})
        if not shapes:
            return
        classes = next(iter(shapes.values()))[0]
        samples = _summed(trainer, pl_module, self._samples, (classes, 1))
        means: dict[str, np.ndarray] = {}
        for name, shape in shapes.items():
            sums = _summed(trainer, pl_module, self._coefficients.get(name), shape)
            mean = (sums / samples).cpu().numpy()
            # Layers that share a routing are one.
            if not any(np.array_equal(mean, other, equal_nan=True) for other in means.values()):
                means[name] = mean
        if trainer.is_global_zero:
            assert self.folder is not None
            data = trainer.datamodule  # type: ignore[attr-defined]
            title = f"{split}: kernels by class, over {int(samples.sum()):,} images"
            figure = kernel_attention(means, list(data.class_names), title)
            show(trainer, f"{split}/kernel_attention", save(figure, self.folder / "kernel_attention.png"))

    def _draw_regions(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        for name, regions in self._regions.items():
            assert self.folder is not None
            num_regions = pl_module.network.get_submodule(name).num_regions  # type: ignore[union-attr]
            figure = region_overlay(self._images, regions, num_regions, f"{split}: regions of {name}")  # type: ignore[arg-type]
            show(trainer, f"{split}/regions/{name}", save(figure, self.folder / "regions" / f"{name}.png"))

    def _draw_choices(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        network = pl_module.network
        if not isinstance(network, DRNet) or network.phase == "pretrain":
            return
        rows = torch.cat([torch.empty(0, 4, dtype=torch.long, device=pl_module.device), *self._choices])
        if trainer.world_size > 1:
            rows = torch.cat(gather_all_tensors(rows))
        if not trainer.is_global_zero or not len(rows):
            return
        assert self.folder is not None
        rows = rows[rows[:, 0].argsort()].cpu()
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = list(data.class_names)
        index, choice, label, predicted = rows.unbind(1)
        sizes = [f"{height} x {width} pixels" for height, width in network.candidates]
        shares = [cost / network.dense for cost in network.costs]
        pictures, captions, hits, texts = [], [], [], []
        for j in sorted(range(len(sizes)), key=network.costs.__getitem__):
            there = (choice == j).nonzero().squeeze(1)
            # Evenly over the split, which may be sorted by class.
            places = torch.linspace(0, len(there) - 1, min(IMAGES_PER_CHOICE, len(there))).round().long()
            shown = there[places].tolist()
            pictures.append([data.raw_image(split, int(index[i])) for i in shown])
            captions.append([names[int(predicted[i])] for i in shown])
            hits.append([bool(predicted[i] == label[i]) for i in shown])
            right = (predicted[there] == label[there]).double().mean().item()
            correct = f", {right:.1%} of them right" if len(there) else ""
            texts.append(
                f"{sizes[j]} ({shares[j]:.0%} of the compute): {len(there) / len(rows):.1%} of the images{correct}"
            )
        title = f"{split}: who is classified at which resolution"
        figure = exit_sheet(pictures, captions, hits, texts, title)
        show(trainer, f"{split}/resolutions", save(figure, self.folder / "resolutions.png"))
        if len(names) <= MOST_CLASSES:
            counts = torch.bincount(label * len(sizes) + choice, minlength=len(names) * len(sizes))
            counts = counts.view(len(names), len(sizes))
            title = f"{split}: resolutions by class, over {len(rows):,} images"
            figure = choices_by_class(counts.numpy(), names, sizes, shares, title)
            show(trainer, f"{split}/resolutions_by_class", save(figure, self.folder / "resolutions_by_class.png"))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._start()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Looks at what the layers decided for a batch."""
        self._look(trainer, pl_module, outputs, batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the test split."""
        self._finish(trainer, pl_module, "test")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._start()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Looks at a batch, unless training goes on: its end is what gets drawn."""
        if trainer.state.fn == "validate":
            self._look(trainer, pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the validation split."""
        if trainer.state.fn == "validate":
            self._finish(trainer, pl_module, "val")


def _evenly(layers: dict[str, Tensor], most: int) -> dict[str, Tensor]:
    places = np.linspace(0, len(layers) - 1, min(most, len(layers))).round().astype(int).tolist()
    names = list(layers)
    return {names[place]: layers[names[place]] for place in places}


def _summed(trainer: Trainer, pl_module: LightningModule, values: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """The sum over all processes; None counts as zeros."""
    own = torch.zeros(shape, device=pl_module.device) if values is None else values
    return torch.stack(gather_all_tensors(own)).sum(0) if trainer.world_size > 1 else own
