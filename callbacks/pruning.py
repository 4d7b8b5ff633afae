"""Pruning while a network trains: single weights or whole filters that stay zero, and filters that may grow again.

The network stays what it is, with zeros in it, so that its checkpoints load everywhere; masks are in the checkpoint
beside it. To remove filters for good, and have a smaller network, is what `python -m exp prune` does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_modules.internals import Clock
from models.mistakes import Mistake
from models.official import unwrap
from models.pruning.criteria import l1_norm
from models.pruning.masks import apply_masks, conv_weights, mask_gradients, redraw, rewound
from models.pruning.selection import keep_largest, kept_count, magnitude_masks
from models.pruning.sparsity import soft_prune

Then = Literal["train_on", "rewind", "redraw"]
Granularity = Literal["weight", "filter"]


class MaskPruning(Callback):
    """Sets the smallest weights of a network's convolutions to zero at given epochs, and keeps them there.

    The optimiser starts afresh at each pruning: momentum of the training before would move weights that are gone.

    Args:
        share: share of the weights of all convolutions together that goes at each pruning, of those that are left; or
            of the filters of each convolution, once.
        epochs: epochs that are over when it prunes, fractions included; 0 is before the first step. Several are
            iterative pruning.
        granularity: `weight`: single weights by their size, over all convolutions at once; `filter`: filters by their
            L1 norm, in each convolution.
        then: what the weights that are left do: `train_on`; `rewind` to what they were at `rewind_to`, a lottery
            ticket (arXiv 1803.03635), and with them everything else in the network; or `redraw`: start from random
            weights under the same mask (arXiv 1810.05270).
        rewind_to: epoch whose network is rewound to; 0 is the beginning.
        of: file of the weights that are judged at the first pruning in place of the network's own: a checkpoint of
            another training of the same network, or bare weights. With a `share` of null what is zero there goes, as
            in a checkpoint of a masked network.

    Raises:
        Mistake: a share outside (0, 1), no epoch or a negative one, filters in several rounds or redrawn, or a
            rewinding that comes before what it rewinds to; when it prunes, a file without these weights.
    """

    def __init__(
        self,
        share: float | None,
        epochs: Sequence[float] = (0.0,),
        granularity: Granularity = "weight",
        then: Then = "train_on",
        rewind_to: float = 0.0,
        of: str | None = None,
    ) -> None:
        if share is None and (of is None or granularity == "filter" or len(epochs) > 1):
            raise Mistake("MaskPruning: without a share it takes single weights once, and `of`, a file with zeros")
        if share is not None and not 0 < share < 1:
            raise Mistake(f"MaskPruning: share lies between 0 and 1, not {share:g}")
        if not epochs or min(epochs) < 0:
            raise Mistake(f"MaskPruning: epochs are one or more, at least 0, not {list(epochs)}")
        if granularity == "filter" and (len(epochs) > 1 or then == "redraw"):
            raise Mistake("MaskPruning: filters go once, and are not redrawn: give one epoch, and train_on or rewind")
        if then == "rewind" and rewind_to > min(epochs):
            raise Mistake(f"MaskPruning: rewind_to {rewind_to:g} comes after the pruning at epoch {min(epochs):g}")
        self.share, self.epochs = share, sorted(epochs)
        self.granularity, self.then, self.rewind_to, self.of = granularity, then, rewind_to, of
        self.masks: dict[str, Tensor] = {}
        self.done = 0
        self._start: dict[str, Tensor] = {}

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        clock, network = Clock(trainer), pl_module.network
        assert isinstance(network, torch.nn.Module)
        if self.then == "rewind" and not self._start and clock.step >= self._step(clock, self.rewind_to):
            self._start = {name: value.detach().clone() for name, value in network.state_dict().items()}
        while self.done < len(self.epochs) and clock.step >= self._step(clock, self.epochs[self.done]):
            self._prune(trainer, network)
            self.done += 1

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        mask_gradients(pl_module.network, self._on(pl_module))  # type: ignore[arg-type]

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # Optimisers that mix the gradients of a layer move weights that have none.
        apply_masks(pl_module.network, self._on(pl_module))  # type: ignore[arg-type]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.masks, "done": self.done, "start": self._start}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.masks, self.done, self._start = state_dict["masks"], state_dict["done"], state_dict["start"]

    def _prune(self, trainer: Trainer, network: torch.nn.Module) -> None:
        weights = conv_weights(network)
        if not weights:
            raise Mistake(f"MaskPruning: {type(network).__name__} has no convolutions")
        judged = self._of(weights) if self.of and not self.done else weights
        if self.share is None:
            self.masks = {name: weight != 0 for name, weight in judged.items()}
        elif self.granularity == "weight":
            self.masks, _ = magnitude_masks(judged, self.share, of_survivors=bool(self.masks))
        else:
            self.masks = {name: self._filters(name, weight) for name, weight in judged.items()}
        if self.then == "rewind":
            network.load_state_dict(rewound(self._start, self._moved(self.masks, next(iter(self._start.values())))))
        elif self.then == "redraw":
            generator = torch.Generator(next(iter(weights.values())).device).manual_seed(self.done)
            redraw(network, self.masks, generator)
        apply_masks(network, self.masks)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()

    def _of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the file, where the network's are."""
        path = Path(str(self.of))
        try:
            found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                found = unwrap(found)
        except (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise Mistake(f"MaskPruning: of {path}: no weights can be read from it ({reason})") from error
        for name, weight in weights.items():
            if name not in found or found[name].shape != weight.shape:
                raise Mistake(f"MaskPruning: of {path}: no weights of {name} {tuple(weight.shape)} in it")
        return {name: found[name].to(weight.device) for name, weight in weights.items()}

    def _filters(self, name: str, weight: Tensor) -> Tensor:
        assert self.share is not None
        count = kept_count(len(weight), self.share)
        if not count:
            raise Mistake(
                f"MaskPruning: {name} would lose all its {len(weight)} filters with a share of {self.share:g}"
            )
        mask = torch.zeros_like(weight, dtype=torch.bool)
        mask[keep_largest(l1_norm(weight), count)] = True
        return mask

    def _on(self, module: LightningModule) -> dict[str, Tensor]:
        """The masks where the network is, to which a resumed run brings them once."""
        if self.masks and next(iter(self.masks.values())).device != module.device:
            self.masks = {name: mask.to(module.device) for name, mask in self.masks.items()}
        return self.masks

    @staticmethod
    def _moved(masks: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        return {name: mask.to(like.device) for name, mask in masks.items()}

    @staticmethod
    def _step(clock: Clock, epoch: float) -> int:
        return round(epoch * clock.steps_per_epoch)


class SoftFilterPruning(Callback):
    """Sets the filters of smallest norm to zero before the training and after each epoch; they may grow again.

    Norms, biases and linear layers are left as they are, so that a filter of zeros still gives what the norm behind it
    makes of zero: what is pruned for good by `python -m exp prune --criterion l2` computes something else.

    Reference: "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", arXiv 1808.06866.

    Args:
        keep: share of the filters of each convolution that is kept.

    Raises:
        Mistake: a share outside (0, 1).
    """

    def __init__(self, keep: float) -> None:
        if not 0 < keep < 1:
            raise Mistake(f"SoftFilterPruning: keep lies between 0 and 1, not {keep:g}")
        self.keep = keep

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A resumed training began long ago.
        if not trainer.global_step:
            self._prune(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Before the validation and the checkpoint of the epoch.
        if batch_idx + 1 == trainer.num_training_batches:
            self._prune(pl_module)

    def _prune(self, module: LightningModule) -> None:
        soft_prune(conv_weights(module.network), self.keep)  # type: ignore[arg-type]
