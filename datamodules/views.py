"""Any data set of images, trained on in several views of each image, with all of its labels or with few."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from datamodules.base import DataModule
from datamodules.errors import DataError, OptionError
from datamodules.loading import Loader
from datamodules.ordering import derived_seed
from datamodules.pixels import Pixels
from datamodules.splits import Source, Subset
from datamodules.transforms.ctaugment import Probed, Rates, control_of
from datamodules.transforms.pipeline import Augmentation, Transform
from datamodules.transforms.views import Views


@dataclass
class View:
    """How a view of an image comes about.

    Args:
        transforms: albumentations transforms, applied in order.
        copies: How many such views of each image there are, each with random numbers of its own.
    """

    transforms: list[Transform] = field(default_factory=list)
    copies: int = 1


class MultiView(DataModule):
    """The images of another data module; of those to train on, several views. An image is decoded once.

    Batch: as the other's, and in training ``image`` is a list of tensors [V,B,3,H,W], one for each size of view.

    Args:
        data: The data module; its batch, workers, pixels and evaluation transforms are taken over.
        views: Views of each training image.

    Raises:
        OptionError: There are none, or less than one copy of one, or one that needs labels.
    """

    has_labels = False

    def __init__(self, data: DataModule, views: list[View]) -> None:
        if not views or any(view.copies < 1 for view in views):
            raise OptionError("views: name at least one view, each with copies of 1 or more.")
        self._control = control_of([view.transforms for view in views])
        if self._control is not None and not self.has_labels:
            raise OptionError("views: CTAugment learns from labelled images: put the data module into FewLabels.")
        super().__init__(
            data.batch_size,
            data.train_transforms,
            data.eval_transforms,
            data.num_workers,
            data.on_bad_sample,
            pixels=data.told_pixels,
        )
        self.data, self.views = data, views
        self.mean, self.std, self.typical_size = data.mean, data.std, data.typical_size
        # Counts what is skipped while the data set is opened, too.
        self._skipping = data._skipping

    @override
    def adopt(self, pixels: Pixels) -> None:
        self.data.adopt(pixels)
        super().adopt(pixels)
        self.train_transforms, self.eval_transforms = self.data.train_transforms, self.data.eval_transforms

    @override
    def open(self) -> dict[str, Source | None]:
        sources = self.data.open()
        self.class_names = self.data.class_names
        return sources

    @override
    def example_sample(self, image: np.ndarray) -> dict[str, Any]:
        return self.data.example_sample(image)

    @override
    def pipeline_for(self, split: str) -> Augmentation:
        if split != "train":
            return super().pipeline_for(split)
        return Views([view.transforms for view in self.views for _ in range(view.copies)], self.stream_seed(split))


class FewLabels(MultiView):
    """The images of another data module, all of them without labels in several views, and a few with labels.

    A training batch is a dict of two: ``train``, views of unlabelled images, and ``labelled``, as the other data module
    trains on them. An epoch is a pass over the unlabelled images, which are all training images. Labels of ``train``
    are there to measure what is said of them, not to learn from.

    Which images are labelled is drawn by the run's seed, so that arms of a comparison have the same, and is in the
    checkpoint. With fewer of them a class, they are some of those with more.

    Args:
        data: The data module; its ``batch_size`` is that of labelled images.
        views: Views of each unlabelled image, such as a weak and a strong one.
        labels_per_class: Labelled images of each class.
        unlabelled_ratio: Unlabelled images for each labelled one of a batch.
        label_seed: Seed of the choice; by default the run's.

    Raises:
        OptionError: Less than one label or unlabelled image.
    """

    has_labels = True

    def __init__(
        self,
        data: DataModule,
        views: list[View],
        labels_per_class: int,
        unlabelled_ratio: int = 7,
        label_seed: int | None = None,
    ) -> None:
        super().__init__(data, views)
        if labels_per_class < 1 or unlabelled_ratio < 1:
            raise OptionError(
                f"labels_per_class={labels_per_class} and unlabelled_ratio={unlabelled_ratio} must be at least 1."
            )
        self.labels_per_class, self.unlabelled_ratio, self.label_seed = labels_per_class, unlabelled_ratio, label_seed
        self._chosen: np.ndarray | None = None

    @override
    def streams(self) -> dict[str, int]:
        return {"train": self.unlabelled_ratio * self.batch_size, "labelled": self.batch_size}

    @property
    def rates(self) -> Rates | None:
        """What `CTAugment` draws by; None without."""
        return None if self._control is None else self._control.rates

    @override
    def pipeline_for(self, split: str) -> Augmentation:
        pipeline = super().pipeline_for(split)
        if split != "labelled" or self._control is None:
            return pipeline
        return Probed(pipeline, self._control, derived_seed(self.seed, "probes"))

    @override
    def train_dataloader(self) -> Loader:
        loader = super().train_dataloader()
        if self.rates is not None:
            loader.begin = self.rates.begin
        return loader

    @override
    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch | {"probe": self._normalised(batch["probe"])} if "probe" in batch else batch

    @override
    def open(self) -> dict[str, Source | None]:
        sources = super().open()
        train: Any = sources["train"]
        if self._chosen is None:
            seed = self.seed if self.label_seed is None else self.label_seed
            self._chosen = few_of_each(train.labels, self.labels_per_class, seed, self.class_names)
        return sources | {"labelled": Subset(train, self._chosen)}

    @override
    def state_dict(self) -> dict[str, Any]:
        """Which training images are labelled, and what `CTAugment` draws by."""
        state: dict[str, Any] = {} if self._chosen is None else {"labelled": torch.from_numpy(self._chosen)}
        return state if self.rates is None else state | {"rates": self.rates.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the images that were labelled, and the rates that there were."""
        if "rates" in state_dict and self.rates is not None:
            self.rates.load_state_dict(state_dict["rates"])
        if "labelled" in state_dict:
            self._chosen = state_dict["labelled"].numpy()
            if "train" in self._sources:
                train: Any = self.source("train")
                self._sources["labelled"] = Subset(train, self._chosen)


def few_of_each(labels: np.ndarray, count: int, seed: int, class_names: list[str]) -> np.ndarray:
    """Positions of as many samples of each class, ascending, int64 [classes * count].

    Args:
        labels: Class of each sample, int64 [n].
        count: Samples of a class.
        seed: Of the choice; those of a smaller count are among those of a larger one.
        class_names: Names of the classes.

    Raises:
        DataError: A class has fewer.
    """
    generator = np.random.Generator(np.random.PCG64(derived_seed(seed, "labels")))
    order = generator.permutation(len(labels))
    chosen = []
    for number, name in enumerate(class_names):
        own = order[labels[order] == number]
        if len(own) < count:
            raise DataError(
                f"the class {name!r} has {len(own)} training images, fewer than labels_per_class={count}: lower it, or "
                "add images of the class."
            )
        chosen.append(own[:count])
    return np.sort(np.concatenate(chosen))
