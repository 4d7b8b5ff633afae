"""What every data module shares: splits, loaders, normalisation on the device, and what happens to bad samples."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from datamodules.batches import EvalBatches, RoundBatches, SideBySide, TrainBatches
from datamodules.collation import stack
from datamodules.errors import DataError, OptionError
from datamodules.files import ImageFiles
from datamodules.loading import Loader, Samples, Streams
from datamodules.looking import Looking
from datamodules.ordering import derived_seed
from datamodules.packing import Packed
from datamodules.pixels import Pixels
from datamodules.remarks import remarks_on_classes
from datamodules.skipping import Skipping
from datamodules.splits import Source
from datamodules.transforms.pipeline import Augmentation, Pipeline, Transform
from datamodules.transforms.undrawn import Undrawn

Split = Literal["train", "val", "test", "predict"]


class DataModule(Looking, lightning.LightningDataModule):
    """A data set with its splits and transforms.

    A batch is a dict: ``image`` [B,3,H,W] (uint8 from the loader, float32 and normalised on the device), ``index``
    int64 [B] (position in the split) and what the task adds (``label`` int64 [B] in classification). Prediction
    batches have ``image`` and ``index`` only. A training batch of several streams (``streams``) is a dict of such
    batches, by stream; several views of each image (``transforms.Views``) are a list of tensors [V,B,3,H,W].

    Args:
        batch_size: Samples of one batch over all processes.
        train_transforms: Augmentation of training images; by default what is usual for the data set.
        eval_transforms: Transforms of validation, test and prediction images; by default what is usual.
        num_workers: Loader processes for each process; 0 loads in the training process.
        on_bad_sample: ``error`` stops at an unreadable sample. ``skip`` trains on the next readable one instead and
            leaves the sample out of an evaluation, with a warning.
        max_bad_samples: Bad samples that ``skip`` accepts in one process before it stops.
        pixels: How images are normalised; by default as the network's weights expect it, and where they do not say,
            by ``mean`` and ``std``.
        packed: Folder of a pack that `exp data pack` made: images to train on come from there, at the size that
            training needs; images to evaluate come from the data set.

    Attributes:
        mean: Mean of the RGB channels in [0, 1] where neither the config nor weights say how images are normalised.
        std: Their standard deviation.

    Raises:
        DataError: If an argument is out of range.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]] = staticmethod(stack)
    pipeline: type[Pipeline] = Pipeline
    # Height and width that an image of the data set may have, where no data are at hand.
    typical_size: tuple[int, int] = (256, 256)

    def __init__(
        self,
        batch_size: int,
        train_transforms: list[Transform] | None = None,
        eval_transforms: list[Transform] | None = None,
        num_workers: int = 0,
        on_bad_sample: Literal["error", "skip"] = "error",
        max_bad_samples: int = 100,
        pixels: Pixels | None = None,
        packed: Path | str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0 or max_bad_samples < 0:
            raise DataError(
                f"batch_size={batch_size} must be at least 1; num_workers={num_workers} and "
                f"max_bad_samples={max_bad_samples} must not be negative."
            )
        self.batch_size, self.num_workers = batch_size, num_workers
        self.packed = None if packed is None else Path(packed)
        self.told_pixels = pixels
        self._adopted: Pixels | None = None
        self._usual_transforms = train_transforms is None and eval_transforms is None
        self.train_transforms = self.default_train_transforms() if train_transforms is None else train_transforms
        self.eval_transforms = self.default_eval_transforms() if eval_transforms is None else eval_transforms
        self.on_bad_sample = on_bad_sample
        self._skipping = Skipping(on_bad_sample, max_bad_samples)
        self.seed = 0
        self.class_names: list[str] = []
        self.predict_paths: list[Path | np.ndarray] = []
        self._sources: dict[str, Source | None] = {}
        self._inspected = False
        self._looks: dict[torch.device, tuple[Pixels, tuple[torch.Tensor, torch.Tensor]]] = {}

    @property
    def pixels(self) -> Pixels:
        """How images are normalised: as told, else as the weights expect it, else by ``mean`` and ``std``."""
        return self.told_pixels or self._adopted or Pixels(self.mean, self.std)

    def adopt(self, pixels: Pixels) -> None:
        """Makes images look as weights expect them.

        Args:
            pixels: What the weights state. Their size is that of images whose transforms nobody has named, in data
                sets that have no size of their own.

        Raises:
            DataError: If the data module was told otherwise.
        """
        if self.told_pixels is not None and not self.told_pixels.agree(pixels):
            raise DataError(f"the config says {self.told_pixels}")
        self._adopted = pixels
        self._looks.clear()
        if self._usual_transforms:
            self.train_transforms = self.default_train_transforms()
            self.eval_transforms = self.default_eval_transforms()

    def default_train_transforms(self) -> list[Transform]:
        """Augmentation where the config names none."""
        return []

    def default_eval_transforms(self) -> list[Transform]:
        """Transforms of other images where the config names none."""
        return []

    @property
    def bad_samples(self) -> dict[str, str]:
        """What was skipped, by name, and why."""
        return self._skipping.skipped

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def example(self, samples: int = 1) -> dict[str, Any]:
        """A batch as evaluation steps get it, without a data set: images of noise with a label each.

        Args:
            samples: Number of images.

        Returns:
            The batch, normalised, on the CPU; images are what the evaluation transforms make of ``typical_size``.
        """
        random = np.random.Generator(np.random.PCG64(0))
        augmentation = self.pipeline_for("val")
        made = []
        for index in range(samples):
            image = random.integers(256, size=(*self.typical_size, 3), dtype=np.uint8)
            made.append(augmentation(self.example_sample(image), 0, index) | {"index": index})
        return self.on_after_batch_transfer(type(self).collate(made), 0)

    def example_sample(self, image: np.ndarray) -> dict[str, Any]:
        """A sample such as an evaluation split loads, made of any image, [H,W,3] uint8."""
        return {"image": image, "label": 0}

    @abstractmethod
    def open(self) -> dict[str, Source | None]:
        """Opens the data set and makes its splits; called once.

        Returns:
            Data set of ``train``, ``val`` and ``test``; None for a split that does not exist.

        Raises:
            DataError: If files are missing or contradict each other.
        """

    def has(self, split: Split) -> bool:
        """Whether there is such a split."""
        self._open()
        return self._sources.get(split) is not None

    @override
    def setup(self, stage: str) -> None:
        """Opens the data set, once; before a training, looks at what is in it.

        Raises:
            DataError: If files are missing or contradict each other, or there is nothing to be learnt from them.
        """
        if stage == "predict":
            self._sources["predict"] = ImageFiles(self.predict_paths)
            # Prediction needs of the data set no more than the names of its classes, and can do without.
            with contextlib.suppress(DataError):
                self._open()
            return
        self._open()
        if stage == "fit" and not self._inspected:
            self._inspected = True
            for remark in self.inspect():
                rank_zero_warn(remark)

    def inspect(self) -> list[str]:
        """What in the labels of the splits can hardly be meant, to be said before a training.

        Raises:
            DataError: If there is nothing to be learnt from them.
        """
        labels = {split: getattr(source, "labels", None) for split, source in self._sources.items()}
        return [
            remark
            for split, classes in labels.items()
            if classes is not None
            for remark in remarks_on_classes(
                split, np.bincount(classes, minlength=self.num_classes), self.class_names, "image"
            )
        ]

    def _open(self) -> None:
        if "train" not in self._sources:
            self._sources |= self.open()

    @override
    def source(self, split: str) -> Source:
        """Data set of a split.

        Raises:
            DataError: If there is none.
        """
        if split not in self._sources:
            self.setup("predict" if split == "predict" else "validate")
        source = self._sources.get(split)
        if source is None:
            raise DataError(f"{type(self).__name__} has no {split} split here.")
        return source

    def streams(self) -> dict[str, int]:
        """What a training batch is drawn from: splits, and of each the samples of a batch over all processes.

        An epoch is one pass over the first. Others are drawn from side by side with it, one batch of each a step, and
        begin again when they are through. Batches of one stream are as the class describes them; of several, they are
        a dict of such batches by the name of the split.
        """
        return {"train": self.batch_size}

    def pipeline_for(self, split: str) -> Augmentation:
        """What is done to each sample of a split; several views of each image come from ``transforms.Views``."""
        streams = list(self.streams())
        if split not in streams:
            return self.pipeline(self.eval_transforms, self.seed)
        return self.pipeline(self.train_transforms, self.stream_seed(split))

    def stream_seed(self, split: str) -> int:
        """Seed of the order and the augmentation of a stream: the run's of the first, another one of each other."""
        return self.seed if split == next(iter(self.streams())) else derived_seed(self.seed, split)

    @override
    def train_dataloader(self) -> Loader:
        """Training batches; resumable to the sample."""
        rank, world_size = self._processes()
        accumulate = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        (name, batch_size), *others = self.streams().items()
        first = TrainBatches(
            len(self.source(name)), batch_size, accumulate, self.seed, rank, world_size, self.batch_groups(), overfits
        )
        if not others:
            return self._loader(self._train_samples(name), first)
        rounds = {
            other: RoundBatches(len(self.source(other)), size, self.stream_seed(other), rank, world_size)
            for other, size in others
        }
        samples = {stream: self._train_samples(stream) for stream in self.streams()}
        return self._loader(Streams(samples), SideBySide(name, first, rounds))

    def plain_train_dataloader(self) -> Loader:
        """Every training sample once over all processes, in order and with the evaluation transforms."""
        return self._evaluation_loader("train")

    def undrawn_train_dataloader(self) -> Loader:
        """Every training sample once over all processes, in order, as every epoch has it.

        Raises:
            OptionError: If an epoch may have another one.
        """
        (name, _), *others = self.streams().items()
        if others:
            raise OptionError(f"its training batches are of several streams: {', '.join(self.streams())}")
        source, pipeline = self.source(name), Undrawn(self.pipeline_for(name))
        # What draws at all draws for the first image, as a rule, and is said without a sample's name.
        pipeline(source.load(0), 0, 0)
        batches = EvalBatches(len(source), self.batch_size, *self._processes())
        return self._loader(Samples(source, pipeline, substitute=False), batches)

    def file_dataloader(self, paths: list[Path]) -> Loader:
        """Image files, and those in folders, as the split ``files``: each once over all processes."""
        self._sources["files"] = ImageFiles(paths)
        return self._evaluation_loader("files")

    @override
    def val_dataloader(self) -> Loader | list[Loader]:
        """Every validation sample once over all processes; nothing if no sample was held out."""
        # Lightning takes an empty list for "no validation", which a held-out share of 0 asks for.
        self.setup("validate")
        return [] if self._sources["val"] is None else self._evaluation_loader("val")

    @override
    def test_dataloader(self) -> Loader:
        """Every test sample once over all processes."""
        return self._evaluation_loader("test")

    @override
    def predict_dataloader(self) -> Loader:
        """Every image of ``predict_paths`` once over all processes."""
        return self._evaluation_loader("predict")

    def _train_samples(self, split: str) -> Samples:
        source = self.source(split) if self.packed is None else Packed(self.source(split), self.packed, split)
        return Samples(source, self.pipeline_for(split), substitute=self.on_bad_sample == "skip")

    def _evaluation_loader(self, split: str) -> Loader:
        source, (rank, world_size) = self.source(split), self._processes()
        samples = Samples(source, self.pipeline_for("val" if split == "train" else split), substitute=False)
        return self._loader(samples, EvalBatches(len(source), self.eval_batch(world_size), rank, world_size))

    def _processes(self) -> tuple[int, int]:
        """Number of this process, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, samples: Samples | Streams, batches: TrainBatches | SideBySide | EvalBatches) -> Loader:
        return Loader(
            samples,
            batches,
            join=type(self).collate,
            report=self._skipping.report,
            position=self._position,
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def batch_groups(self) -> np.ndarray | None:
        """Group of each training sample, int64 [n], where a batch takes its samples from one group; else None."""
        return None

    def eval_batch(self, world_size: int) -> int:
        """Samples of one validation, test or prediction batch over all processes."""
        return self.batch_size

    def _position(self) -> tuple[int, int] | None:
        """Epoch and batches consumed in it, as the trainer counts: loaders run ahead of the steps that were taken."""
        if self.trainer is None:
            return None
        loop = self.trainer.fit_loop
        batches: int = loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        return loop.epoch_progress.current.completed, batches

    def collect_faults(self) -> None:
        """From now on, keeps note of all samples, records and files that cannot be used, and stops at none of them."""
        self._skipping.collect()

    def leave_out(
        self, found: str, problems: list[tuple[str, str]], count: int | None = None, file: Path | None = None
    ) -> None:
        """Raises for records or files that cannot be used, or counts them and warns, by ``on_bad_sample``.

        Args:
            found: What and how many they are, such as ``train.json: 3 records cannot be used``.
            problems: Record (or file) and reason of each.
            count: How many there are, if ``problems`` are only the first of them.
            file: Where the records are, unless ``problems`` name files.

        Raises:
            DataError: If they are errors, or too many.
        """
        self._skipping.leave_out(found, problems, len(problems) if count is None else count, file)

    @override
    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Converts uint8 images to float32 and normalises them, on the device they are on."""
        if "image" not in batch:
            return {stream: self.on_after_batch_transfer(part, dataloader_idx) for stream, part in batch.items()}
        image = batch["image"]
        if isinstance(image, list):
            return batch | {"image": [self._normalised(one) for one in image]}
        return batch | {"image": self._normalised(image)}

    def _normalised(self, image: torch.Tensor) -> torch.Tensor:
        if image.dtype != torch.uint8:
            return image
        if image.device not in self._looks:
            self._looks[image.device] = self.pixels, self.pixels.factors(image.device)
        pixels, factors = self._looks[image.device]
        image = pixels.normalised(image, factors)
        if self.trainer is not None:
            # Lightning converts floats before the transfer, when these were still bytes.
            image = self.trainer.precision_plugin.convert_input(image)
        return image
