"""What training and evaluation of any network share; a task says what its losses are, and what counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from lightning_modules.alone import alone
from lightning_modules.distillation import TEACHER, Distillation
from lightning_modules.findings import Findings
from lightning_modules.internals import Clock, check_compiles, compile_once, step_counts, trainer_of
from lightning_modules.optimization import JointOptimizer, MakeOptimizer, Part, Quantity, clip_parts, restored
from lightning_modules.parameter_groups import DecayAll, LayerDecay
from lightning_modules.restoring import check_network
from lightning_modules.schedules import Constant, Schedule
from lightning_modules.step_log import StepLog
from models.mistakes import Mistake

Batch = dict[str, Any]


class Task(LightningModule, ABC):
    """A built network with what it is trained and evaluated with; a subclass is one task.

    A subclass computes a dict of named scalar losses in `training_step` and returns
    `self.total_loss(losses, metrics, batch_size)`. Callbacks may put callables into `self.penalties` (name -> function
    that returns a scalar tensor); they are evaluated after the forward pass and added to the loss (compute budget,
    sparsity).

    Of an evaluation it writes three methods, for a split `val` or `test`: `start` forgets what was counted, `count`
    counts a batch and returns what reports want to see of it, and `finish` makes `Findings` of what all processes have
    counted. Everything else about an evaluation is done here: what was found is logged and kept in `findings`. If it
    has `num_classes`, those of the data must be as many.

    Args:
        network: the network to train.
        optimizer: called with the parameter groups, e.g. `torch.optim.AdamW`, `timm.optim.Lamb`, `timm.optim.Lars`.
            Norms, biases and other 1-D parameters get no weight decay.
        schedule: the learning rate per optimiser step; `None` keeps it constant.
        schedules: other quantities of the optimiser that change over the steps, by their names in its parameter groups,
            such as `weight_decay` or `momentum`; relative to what the optimiser is given.
        layer_decay: learning rates that fall with a layer's distance from the head.
        lr_multipliers: what the learning rate is multiplied by for the parameters whose names contain a text; the first
            text that fits counts.
        decay_all: whether weight decay is for norms and biases too; `but_norms`: for biases and not for norms.
        reference_batch: the effective batch (samples per optimiser step) for which the optimiser's `lr` is meant;
            given one, the learning rate is scaled linearly to the batch in use.
        compile: compile the network with `torch.compile`; refused for networks that say why in `refuses_compile`.
        channels_last: keep images and convolutions in channels-last memory order, which is faster on most devices.
        distillation: what the network learns from a teacher, too; see `Distillation`.

    Raises:
        Mistake: a multiplier that is not positive, or fits no parameter; a network that refuses to be compiled.
    """

    monitor: str | None = "val/loss"
    monitor_mode: str = "min"
    # Metrics of an evaluation that the progress bar shows.
    shown: tuple[str, ...] = ()
    # Those that a learning curve shows beside the loss; by default the monitored one.
    curves: tuple[str, ...] = ()
    num_classes: int | None = None  # Labels that the network tells apart; None of a task without classes.
    alters_images: str | None = None  # What a training step does to images before its network sees them.

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer = torch.optim.AdamW,
        schedule: Schedule | None = None,
        schedules: dict[str, Schedule] | None = None,
        layer_decay: LayerDecay | None = None,
        lr_multipliers: dict[str, float] | None = None,
        decay_all: DecayAll = False,
        reference_batch: int | None = None,
        compile: bool = False,
        channels_last: bool = False,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        if channels_last:
            # `Module.to` would refuse the kernels of dynamic convolutions, which have five axes.
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.ndim == 4:
                    tensor.data = tensor.data.to(memory_format=torch.channels_last)
        self.main = Part(
            network, optimizer, schedule or Constant(), schedules or {}, layer_decay, lr_multipliers or {}, decay_all
        )
        if lr_multipliers:
            # Refused here rather than when training begins.
            self.main.groups(1.0, 0.0)
        self.reference_batch = reference_batch
        if compile:
            check_compiles(network)
        self.compile_network, self.channels_last = compile, channels_last
        self.distillation = distillation
        self.penalties: dict[str, Callable[[], Tensor]] = {}
        self.losses: dict[str, Tensor] = {}
        # What changes from step to step, by the name that it is logged under.
        self.quantities: dict[str, Quantity] = {}
        # Of what all processes draw alike in a training step; `callbacks.StepSeed` seeds it at each.
        self.shared_generator = torch.Generator()
        # Of the last evaluation; a trial before training is none.
        self.findings: Findings | None = None
        self._concluded: Findings | None = None
        self._data: Any = None
        self._step_log = StepLog()

    # What a subclass writes.

    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """What the network takes for a batch of an evaluation; nothing where there is no forward pass to speak of.

        Args:
            batch: as the evaluation steps get it.
        """
        return (self.in_memory_order(batch["image"]),)

    @abstractmethod
    def start(self, split: str) -> None:
        """Forgets what was counted before.

        Args:
            split: `val` or `test`.
        """

    @abstractmethod
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        """Counts a batch into what `finish` will find.

        Args:
            batch: on the device.
            split: `val` or `test`.

        Returns:
            What reports want to see of the batch.
        """

    @abstractmethod
    def finish(self, split: str) -> Findings:
        """What was found in everything that was counted since `start`, on all processes.

        Args:
            split: `val` or `test`.
        """

    def parts(self) -> dict[str, Part]:
        """What is trained, by name: the network; a task that trains something beside it adds a part for each."""
        return {"network": self.main, **(self.distillation.part() if self.distillation is not None else {})}

    def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Students, each with the teacher that follows it; teachers get no gradients. Smoothing callbacks move them."""
        return []

    def beside_checkpoints(self) -> list[str]:
        """Parts that no checkpoint has: their weights come from a file of their own whenever a training begins."""
        return [] if self.distillation is None else [TEACHER]

    @property
    def costs_one_forward(self) -> bool:
        """Whether a prediction costs what a forward pass of the network does."""
        return True

    @property
    def data(self) -> Any:
        """The data module: the one that `evaluate` was given, else the trainer's; None without either."""
        return self._data if self._data is not None else getattr(trainer_of(self), "datamodule", None)

    @override
    def setup(self, stage: str) -> None:
        """Checks that data and network agree on the classes; compiles the network once, if asked to."""
        self.check_classes(stage)
        if self.distillation is not None and stage == "fit":
            self.distillation.attach(self, self.data)
        if self.compile_network:
            compile_once(self.network)

    def check_classes(self, stage: str) -> None:
        """Refuses data with other classes than the network's."""
        classes = getattr(self.data, "num_classes", None)
        # Prediction can do without the data set.
        if None not in (self.num_classes, classes) and classes != self.num_classes and (classes or stage != "predict"):
            raise Mistake(
                f"the network has {self.num_classes} classes but the data has {classes}: set "
                f"model.init_args.network.init_args.num_classes={classes}"
            )

    # The network.

    @override
    def forward(self, images: Tensor) -> Any:
        """The network's output for images [B, 3, H, W]."""
        return self.network(self.in_memory_order(images))

    def in_memory_order(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in the memory order that the network is kept in."""
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    # An evaluation.

    @override
    def on_validation_epoch_start(self) -> None:
        self._begin("val")

    @override
    def on_test_epoch_start(self) -> None:
        self._begin("test")

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self.count(batch, "val")

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self.count(batch, "test")

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_findings("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._log_findings("test")

    def conclude(self, split: str) -> Findings:
        """What the evaluation that ends has found; reports may ask before it is logged, on all processes alike."""
        if self._concluded is None:
            self._concluded = self.finish(split)
            self.findings = None if self.trainer.sanity_checking else self._concluded
        return self._concluded

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], split: str = "val", data: Any = None) -> Findings:
        """What `validate` or `test` would find in some batches, without a Trainer's loop.

        The network is left in its mode, and what an evaluation has counted so far is forgotten.

        Args:
            batches: as the evaluation steps get them, or as the data module's loaders yield them.
            split: `val` or `test`, which the batches are of.
            data: the data module; by default the trainer's.
        """
        with alone(self, data), self._precision():
            self._begin(split)
            for batch in batches:
                self.count(self.on_device(batch), split)
            return self.finish(split)

    def _begin(self, split: str) -> None:
        self._concluded = None
        self.start(split)

    def _log_findings(self, split: str) -> None:
        for name, value in self.conclude(split).metrics.items():
            # The same on every process; Lightning asks for sync_dist all the same.
            self.log(f"{split}/{name}", value, prog_bar=name in self.shown, sync_dist=True)

    def _precision(self) -> AbstractContextManager:
        trainer = trainer_of(self)
        return nullcontext() if trainer is None else trainer.precision_plugin.forward_context()

    def on_device(self, batch: Batch) -> Batch:
        """A batch of a loader as the steps get it."""
        moved: Batch = tree_map_only(Tensor, lambda tensor: tensor.to(self.device), batch)
        prepare = getattr(self.data, "on_after_batch_transfer", None)
        return prepare(moved, 0) if prepare is not None else moved

    # A training step.

    def total_loss(self, losses: dict[str, Tensor], metrics: dict[str, Tensor], batch_size: int) -> Tensor:
        """Adds penalties to the losses, logs each term by name and returns the sum to differentiate.

        What is logged at a step is the mean over all processes and all micro-batches since the last logged step.

        Args:
            losses: named scalar losses of this micro-batch.
            metrics: named scalar metrics of this micro-batch, logged but not differentiated.
            batch_size: samples in this micro-batch on this process.
        """
        if self.distillation is not None:
            losses = {name: self.distillation.task_weight * loss for name, loss in losses.items()}
        losses = losses | {name: penalty() for name, penalty in self.penalties.items()}
        total = torch.stack(list(losses.values())).sum() if len(losses) > 1 else next(iter(losses.values()))
        self.losses = {name: value.detach() for name, value in losses.items()}
        terms = {"loss": total.detach(), **metrics}
        if self.distillation is not None:
            terms |= self.distillation.observed()
        if len(losses) > 1:
            terms |= {f"loss_{name}": value for name, value in self.losses.items()}
        self._step_log.add(terms)
        if Clock(self.trainer).logs():
            self._log_steps(batch_size)
        return total

    def _log_steps(self, batch_size: int) -> None:
        means, rate = self._step_log.take(self.trainer, batch_size)
        for name, mean in means.items():
            self.log(f"train/{name}", mean, prog_bar=name == "loss" or name in self.shown)
        lr = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        self.log_dict({"train/lr": lr, "train/images_per_second": rate})
        step = Clock(self.trainer).step
        self.log_dict({f"train/{name}": each.at(step) for name, each in self.quantities.items() if name != "lr"})

    @override
    def on_fit_start(self) -> None:
        """Gives the network what it inherits from a teacher, where the training starts afresh."""
        if self.distillation is not None:
            self.distillation.begin(self, afresh=self.trainer.ckpt_path is None)

    @override
    def on_train_start(self) -> None:
        self._step_log.start()

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.distillation is not None:
            self.distillation.index = batch.get("index")
        step = Clock(self.trainer).step
        for quantity in self.quantities.values():
            quantity.put(quantity.at(step))

    @override
    def on_validation_start(self) -> None:
        # Validation does not count as training.
        self._step_log.pause()

    @override
    def on_validation_end(self) -> None:
        self._step_log.go_on()

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves what is not logged yet, so that a resumed run logs what an uninterrupted one does."""
        if len(self._step_log):
            checkpoint["unlogged"] = self._step_log.state(self.trainer)
        if self.distillation is not None:
            self.distillation.put_aside(checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what was not logged yet; a training goes on with the optimiser's options as they are now."""
        self._step_log.load(checkpoint.get("unlogged", {}), self.device)
        if self.distillation is not None:
            self.distillation.take_back(checkpoint)
        if self.strict_loading and "state_dict" in checkpoint:
            check_network(self, checkpoint["state_dict"])
        trainer, states = trainer_of(self), checkpoint.get("optimizer_states")
        if trainer is not None and trainer.state.fn == "fit" and states:
            states[0] = restored(self.parts(), self._built(), states[0])

    # The optimiser.

    def _built(self) -> dict[str, tuple[Optimizer, dict[str, Any]]]:
        for _, teacher in self.teacher_pairs():
            teacher.requires_grad_(False)
        scale = 1.0 if self.reference_batch is None else self.effective_batch / self.reference_batch
        return {name: part.build(scale) for name, part in self.parts().items()}

    @override
    def configure_optimizers(self) -> Optimizer:
        """One optimiser for all parts, and the quantities of each that change over the steps."""
        steps_per_epoch, total_steps = step_counts(self.trainer)
        if total_steps is None:
            raise Mistake("the schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        built, self.quantities = self._built(), {}
        # A trial of one batch is too short for any warm-up.
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            for name, part in self.parts().items():
                found = part.quantities(*built[name], steps_per_epoch, total_steps)
                prefix = "" if part is self.main else f"{name}_"
                self.quantities |= {f"{prefix}{key}": each for key, each in found.items()}
        optimizers = {name: optimizer for name, (optimizer, _) in built.items()}
        return next(iter(optimizers.values())) if len(optimizers) == 1 else JointOptimizer(optimizers)

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients of each part that says how; those of the others together, as the trainer says."""
        if not clip_parts(self.parts().values(), gradient_clip_val, gradient_clip_algorithm):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @property
    def effective_batch(self) -> int:
        """Samples per optimiser step over all processes."""
        return self.data.batch_size * self.trainer.accumulate_grad_batches
