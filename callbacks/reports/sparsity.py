"""Where in their kernels masked convolutions keep their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from typing_extensions import override

from callbacks.pruning import MaskPruning
from callbacks.reports.report import Report
from drawing.figures import evenly
from drawing.pruning import kernel_patterns
from lightning_modules.internals import trainer_of
from models.pruning.masks import conv_weights, kernel_positions

# Layers that a picture has room for.
MOST = 24


class SparsityPatterns(Report):
    """Draws, of a training that sets single weights to zero, how many are kept at each position of the 3x3 kernels.

    In late layers they tend to form a cross around the middle: "Rethinking the Value of Network Pruning", arXiv
    1810.05270, section 5.
    """

    pictures: ClassVar = {"sparsity_patterns.png": "where in their 3x3 kernels layers keep their weights"}
    splits = ()
    of_training = True

    @override
    def applies(self, task: LightningModule) -> bool:
        trainer = trainer_of(task)
        if trainer is None or not super().applies(task):
            return False
        found = [each for each in trainer.callbacks if isinstance(each, MaskPruning)]  # type: ignore[attr-defined]
        return any(each.granularity == "weight" for each in found)

    @override
    def draw(self) -> Mapping[str, Figure]:
        weights = {name: w for name, w in conv_weights(self.task.network).items() if w.shape[2:] == (3, 3)}
        if not any((weight == 0).any() for weight in weights.values()):
            return {}
        names = evenly(list(weights), MOST)
        patterns = np.stack([kernel_positions({name: weights[name]}).numpy(force=True) for name in names])
        layers = [name.removesuffix(".weight") for name in names]
        return {"sparsity_patterns": kernel_patterns(layers, patterns, "weights that are kept, by place in the kernel")}
