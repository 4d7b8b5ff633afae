"""A plan for the network of a run: how `prune` judges its channels, and what is left of its costs."""

from __future__ import annotations

import argparse
import copy
import itertools
import pkgutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from callbacks import StepSeed
from callbacks.whole_files import whole
from drawing.figures import save
from drawing.pruning import channels_kept
from exp.cli import Cli
from exp.profile import latencies
from exp.usage import UsageError
from models.compute import ComputeReport, NotCountable, count, executed, inference
from models.mistakes import Mistake
from models.pruning.branches import branches_to_budget
from models.pruning.costs import Costs, first_images
from models.pruning.counting import scratch_b_epochs
from models.pruning.groups import ChannelGroup
from models.pruning.plan import Plan
from models.pruning.planning import Choice, plan_to_budget
from models.pruning.readers import METHODS, Readers
from models.pruning.removal import remove
from models.pruning.scores import CRITERIA, Score, copy_gradients, score_by, score_of_importance
from models.pruning.soundness import prunable_groups

# What judges whole branches by, where other criteria judge channels.
OF_BRANCHES = "branch_scale"
# Of measuring a network, in so many turns.
SECONDS, TURNS = 1.0, 3


class Pruning:
    """What `prune` does to the network of a command.

    Args:
        cli: the command, whose network has its trained weights.
        options: of pruning.
    """

    def __init__(self, cli: Cli, options: argparse.Namespace) -> None:
        self.cli, self.options = cli, options
        self.network: nn.Module = cli.model.network
        self.inputs: tuple[Any, ...] = cli.model.inputs(cli.datamodule.example(max(2, options.batch_size)))
        if not self.inputs:
            raise UsageError(f"{type(cli.model).__name__} runs no network on images, so there is nothing to prune")
        self.method = next((method for method in METHODS if method == options.criterion), None)
        self.score = None if self.method or options.criterion == OF_BRANCHES else _score(options.criterion)
        self.readers: Readers | None = None
        self.groups: list[ChannelGroup] = []
        self.whole: list[str] = []

    def plan(self) -> Plan:
        """The plan by which the network meets the budget.

        Raises:
            Mistake: the graph cannot be traced, the budget cannot be reached, or a criterion has no scores for a layer.
        """
        options = self.options
        if options.criterion == OF_BRANCHES:
            return self._without_branches()
        self.groups, self.whole = prunable_groups(self.network, first_images(self.inputs), options.part)
        score = self.score
        if self.method is not None:
            self.readers = Readers(self.network, self._images(), self.groups)
            score = self.readers.score(self.method)
        elif "taylor" in options.criterion.lower():
            self._take_gradients()
        assert score is not None
        try:
            scores = {group.name: score(self.network, group) for group in self.groups}
        except (AttributeError, KeyError, TypeError) as error:
            if options.criterion in CRITERIA + METHODS:
                raise
            raise Mistake(
                f"--criterion {options.criterion}: it has no scores for this network ({type(error).__name__}); it may "
                "need what `prune` does not gather, such as gradients of single samples"
            ) from error
        self.network.zero_grad()
        try:
            costs = Costs(self.network, self._part_inputs(), self.groups, options.part)
        except NotCountable as error:
            raise Mistake(f"{error}; or prune a part of it by --part, such as its backbone") from error
        why: dict[str, Any] = {"criterion": options.criterion}
        if self.whole:
            why["whole"] = self.whole
        choice = Choice(options.scope, {}, options.minimum, options.round_to)
        return plan_to_budget(
            self.network, self.groups, scores, options.budget, options.of, costs, choice, why, self.share_of_time
        )

    def _without_branches(self) -> Plan:
        """The plan by which the branches of the smallest scales go."""
        options = self.options
        if options.part:
            raise UsageError(f"--criterion {OF_BRANCHES}: branches go from the whole network; leave --part out")

        def cost(network: nn.Module) -> float:
            if options.of == "latency":
                return self.share_of_time(network)
            report = executed(network, *self.inputs)
            return report.macs if options.of == "macs" else float(report.params)

        gone = branches_to_budget(self.network, self.inputs, options.budget, cost)
        why = {"criterion": options.criterion, "budget": options.budget, "of": options.of}
        return Plan(type(self.network).__name__, {}, why, tuple(gone))

    def smaller(self, plan: Plan) -> nn.Module:
        """A copy of the network by the plan, with the weights that are left."""
        small = copy.deepcopy(self.network)
        remove(small, plan)
        if self.readers is not None and self.method is not None:
            self.readers.rebuild(small, plan, self.method)
        return small

    def _images(self) -> Iterator[Tensor]:
        """Batches of training images, as the network takes them."""
        cli = self.cli
        cli.datamodule.setup("fit")
        for batch in itertools.islice(cli.datamodule.train_dataloader(), self.options.batches):
            images = cli.model.inputs(cli.datamodule.on_after_batch_transfer(batch, 0))[0]
            if not isinstance(images, Tensor):
                raise UsageError(
                    f"--criterion {self.method}: it needs images in one tensor, which detectors do not take"
                )
            yield images

    def seconds(self, *networks: nn.Module) -> list[float]:
        """Median seconds that each network takes for a batch; they take turns, as the machine may have other work."""
        measured: list[list[float]] = [[] for _ in networks]
        for _ in range(TURNS):
            for network, each in zip(networks, measured, strict=True):
                with inference(network):
                    each += latencies(network, self.inputs, next(network.parameters()).device, SECONDS / TURNS)
        return [statistics.median(each) for each in measured]

    def share_of_time(self, small: nn.Module) -> float:
        """Seconds that a network takes for a batch, as a share of the unpruned one's."""
        before, after = self.seconds(self.network, small)
        return after / before

    def costs(self, small: nn.Module) -> dict[str, dict[str, float]]:
        """Parameters, executed multiply-adds of an image and seconds for a batch, before and after."""
        costs = {}
        networks = {"before": self.network, "after": small}
        for (when, network), seconds in zip(networks.items(), self.seconds(*networks.values()), strict=True):
            ran = executed(network, *self.inputs)
            costs[when] = {"parameters": float(ran.params), "macs": ran.macs, "seconds": seconds}
        return costs

    def found(self, small: nn.Module) -> dict[str, float]:
        """What a validation finds of a network that has not been trained further."""
        task, data = self.cli.model, self.cli.datamodule
        data.setup("validate")
        task.network = small
        try:
            findings = task.evaluate(data.val_dataloader(), "val", data)
        finally:
            task.network = self.network
        return {f"val/{name}": float(value) for name, value in findings.metrics.items()}

    def layers(self, small: nn.Module) -> list[dict[str, Any]]:
        """What every layer with channels of its own was and is, in the order of the network."""
        before, after = (self._counted(network) for network in (self.network, small))
        left: dict[str, Any] = dict(small.named_modules())
        rows = []
        for name, module in self.network.named_modules():
            if name not in before or not isinstance(module, (nn.Conv2d, nn.Linear)):
                continue
            # Layers of a branch that is gone are not there any more.
            parameters_left, macs_left = after.get(name, (0, 0.0))
            rows.append(
                {
                    "layer": name,
                    "channels": _width(module),
                    "kept": _width(left[name]) if name in left else 0,
                    "parameters": before[name][0],
                    "parameters_left": parameters_left,
                    "macs": round(before[name][1]),
                    "macs_left": round(macs_left),
                }
            )
        return rows

    def draw(self, rows: list[dict[str, Any]], path: Path) -> None:
        """Draws how many channels each layer keeps."""
        names, widths, kept = ([row[key] for row in rows] for key in ("layer", "channels", "kept"))
        options = self.options
        title = f"{options.criterion.rpartition('.')[2]}, {options.budget:.0%} of {options.of}"
        with whole(path) as partial:
            save(channels_kept(names, widths, kept, title), partial)

    def _part_inputs(self) -> tuple[Any, ...]:
        """What the part that is pruned takes."""
        return (first_images(self.inputs),) if self.options.part else self.inputs

    def _counted(self, network: nn.Module) -> dict[str, tuple[int, float]]:
        part = self.options.part
        inside = network.get_submodule(part) if part else network
        report: ComputeReport = count(inside, inputs=self._part_inputs())
        prefix = f"{part}." if part else ""
        return {prefix + module.name: (module.params, module.macs) for module in report.modules}

    def _take_gradients(self) -> None:
        """Gives the network the gradients of the training's loss, summed over some of its batches."""
        cli = self.cli
        gradients = _Gradients(self.options.batches)
        trainer = Trainer(
            accelerator="cpu" if not torch.cuda.is_available() else "auto",
            devices=1,
            max_epochs=cli.trainer.max_epochs,
            max_steps=cli.trainer.max_steps,
            limit_val_batches=0,
            callbacks=[StepSeed(cli.config.seed_everything or 0), gradients],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        # What a training leaves behind, such as statistics of norms, is left on a copy.
        task = copy.deepcopy(cli.model)
        trainer.fit(task, cli.datamodule)
        for name, parameter in self.network.named_parameters():
            parameter.grad = gradients.sums.get(f"network.{name}")
        copy_gradients(self.network, self.groups, self.options.part)


class _Gradients(Callback):
    """Adds up the gradients of some steps, and takes them from the optimiser, so that weights stay where they are."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.sums: dict[str, Tensor] = {}

    @override
    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                gradient = parameter.grad.detach().cpu()
                self.sums[name] = self.sums[name] + gradient if name in self.sums else gradient.clone()
                parameter.grad = None
        self.left -= 1
        trainer.should_stop = self.left <= 0


def scratch_epochs(epochs: int, table: dict[str, Any]) -> int:
    """Epochs of the pruned architecture that cost what the unpruned training did.

    Args:
        epochs: of the unpruned training.
        table: of `table_of`.
    """
    before, after = (table["costs"][when]["macs"] for when in ("before", "after"))
    return scratch_b_epochs(epochs, before, after)


def _score(criterion: str) -> Score:
    if "." not in criterion:
        return score_by(criterion)
    try:
        importance = pkgutil.resolve_name(criterion)()
    except (ImportError, AttributeError, ValueError):
        raise UsageError(
            f"--criterion {criterion}: there is no such class; torch-pruning's are torch_pruning.importance.NAME"
        ) from None
    except TypeError as error:
        raise UsageError(f"--criterion {criterion}: it cannot be built without arguments") from error
    return score_of_importance(importance)


def _width(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
