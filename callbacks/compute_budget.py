"""A regulariser that steers what a dynamic network spends towards a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn
from typing_extensions import override

from callbacks.reports.report import Report
from drawing.figures import learning_curve
from lightning_modules.findings import gathered
from lightning_modules.internals import Clock
from lightning_modules.task import Batch, Task
from models.compute import ExpectedCompute, LayerCompute, expected, forget, static_macs
from models.mistakes import Mistake

Form = Literal["squared", "hinge", "linear"]


def budget_penalty(share: Tensor, target: float, form: Form, span: float = 1.0) -> Tensor:
    """What a share of the dense compute costs, for a target share.

    Args:
        share: mean share of the dense compute; any shape.
        target: share that is aimed at.
        form: with d = (share - target) / span: `squared` d^2 pulls from both sides, `hinge` max(0, d) only from above,
            `linear` d pushes down, whatever the target.
        span: the difference in share that counts as 1.

    Returns:
        The penalty, of the shape of `share`.
    """
    difference = (share - target) / span
    if form == "squared":
        return difference.square()
    return difference.clamp(min=0) if form == "hinge" else difference


class ComputeBudget(Report):
    """Adds `weight * penalty(mean share of dense compute - target)` to the loss of any network with dynamic layers.

    The share is what `models.compute.expected` says of the training forward pass, averaged over the batch and over all
    processes before the penalty is taken, so that no process is penalised on its own. With accumulated gradients each
    micro-batch is. Or the penalty of each sample's share is averaged (`per_sample`).

    DRNet's regulariser `eta max(0, (mean F - alpha) / (C_max - C_min))` (arXiv 2106.02898) is `form: hinge`,
    `scope: layer`, `span: range`, `weight: eta` and `target: alpha / C_max`. That of Dynamic Routing,
    `lambda (E / E_all - mu)^2` (arXiv 2003.10401), is `scope: dynamic`, `weight: lambda` and `target: mu`. DyFPN's,
    `lambda sum_i ((cost_i - target) / (max - min))^2` over the two images i of a device (arXiv 2012.00779), is
    `scope: dynamic`, `span: range`, `per_sample: true`, `weight: 2 lambda` and `target: target / max`.

    Logs `train/compute_share`, `train/compute_target`, `train/compute_weight`, and `val/` and `test/compute_share` over
    all samples.

    Args:
        target: share of the dense compute that is aimed at, in (0, 1]; `planned`: for layers that draw in training and
            keep to a plan in an inference, the share that this has, each layer's own with `scope: layer`. The squared
            difference from planned shares is DynamicViT's loss of keep ratios (arXiv 2106.02034, section 3.3) in
            multiply-adds instead of tokens.
        weight: factor of the penalty once warmed up.
        form: see `budget_penalty`.
        scope: `network`: the share of the whole network, static parts included, which are counted for images of the
            size that the data's evaluation transforms yield. `layer`: every dynamic layer's own share is penalised,
            and the penalties are averaged. `dynamic`: the share of all dynamic layers together, without static parts.
        span: what counts as a difference of 1: all the `dense` compute, or its `range`, the dense compute less the
            least that can be chosen.
        per_sample: whether every sample is to meet the target, or the mean of them.
        warmup_epochs: the weight rises linearly from 0 for so long; fractions of an epoch are allowed.
        begin_epochs: there is no penalty before that, and the warm-up begins then.

    Raises:
        Mistake: an option out of its range; in training, a network without dynamic layers.
    """

    pictures: ClassVar = {"compute_budget.png": "what share of the dense compute is spent"}
    of_training = True
    in_every_run = False

    def __init__(
        self,
        target: float | Literal["planned"],
        weight: float = 1.0,
        form: Form = "squared",
        scope: Literal["network", "layer", "dynamic"] = "network",
        span: Literal["dense", "range"] = "dense",
        per_sample: bool = False,
        warmup_epochs: float = 0.0,
        begin_epochs: float = 0.0,
    ) -> None:
        for name, value, choices in (
            ("form", form, ("squared", "hinge", "linear")),
            ("scope", scope, ("network", "layer", "dynamic")),
            ("span", span, ("dense", "range")),
        ):
            if value not in choices:
                raise Mistake(f"ComputeBudget: {name} must be one of {', '.join(choices)}, not {value!r}")
        if target != "planned" and not (isinstance(target, int | float) and 0 < target <= 1):
            raise Mistake(f"ComputeBudget: target is planned or a share of the dense compute in (0, 1], not {target}")
        if min(weight, warmup_epochs, begin_epochs) < 0:
            raise Mistake(f"ComputeBudget: none of {weight=}, {warmup_epochs=}, {begin_epochs=} may be negative")
        self.target: float | Literal["planned"] = target
        self.weight = weight
        self.form: Form = form
        self.scope = scope
        self.span = span
        self.per_sample = per_sample
        self.warmup_epochs = warmup_epochs
        self.begin_epochs = begin_epochs
        self._static: float | None = None
        self._share: Tensor | None = None
        self._target = 0.0
        self._weight = 0.0
        self._evaluated = torch.zeros(2)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Counts the static parts and, to train, adds the penalty; before the module compiles its network."""
        if not isinstance(pl_module, Task):
            raise Mistake(f"ComputeBudget: {type(pl_module).__name__} takes no penalties; lightning_modules.Task does")
        if self._static is None:
            self._static = 0.0
            if self.scope == "network":
                inputs = pl_module.inputs(pl_module.data.example())
                self._static = static_macs(pl_module.network, inputs=inputs)
        if stage == "fit":
            pl_module.penalties["compute"] = lambda: self._penalty(trainer, pl_module)

    def weight_at(self, trainer: Trainer) -> float:
        """The weight of the penalty at the trainer's optimiser step."""
        clock = Clock(trainer)
        per_epoch = clock.steps_per_epoch
        warmup, since = self.warmup_epochs * per_epoch, clock.step - self.begin_epochs * per_epoch
        if since < 0:
            return 0.0
        return self.weight * min(1.0, since / warmup if warmup else 1.0)

    def _compute(self, pl_module: LightningModule) -> ExpectedCompute:
        assert self._static is not None
        return expected(_network(pl_module), self._static)

    def _shares(self, compute: ExpectedCompute) -> Tensor:
        """Of each sample and layer [layers, B], or of each sample [1, B]."""
        if self.scope == "layer":
            return torch.stack([layer.expected / layer.dense for layer in compute.layers.values()])
        return compute.share[None]

    def _penalty(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        compute = self._compute(pl_module)
        shares = self._shares(compute)
        own = shares.mean(1)
        # The value is that of all processes, the gradient that of this one: gradients are averaged afterwards.
        mean = trainer.strategy.reduce(own.detach().clone(), reduce_op="mean")
        self._share = mean.mean()
        parts = list(compute.layers.values()) if self.scope == "layer" else [compute]
        spans = [_range_share(part) if self.span == "range" else 1.0 for part in parts]
        aimed = shares if self.per_sample else own + (mean - own.detach())
        targets = [_planned_share(part) if self.target == "planned" else self.target for part in parts]
        self._target = sum(targets) / len(targets)
        penalties = [
            budget_penalty(share, target, self.form, span).mean()
            for share, target, span in zip(aimed.unbind(), targets, spans, strict=True)
        ]
        self._weight = self.weight_at(trainer)
        return torch.stack(penalties).mean() * self._weight

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # The step's graph is let go of.
        forget(_network(pl_module))
        clock = Clock(trainer)
        if clock.logs(clock.step):
            assert self._share is not None
            values: dict[str, Tensor | float] = {"share": self._share, "target": self._target, "weight": self._weight}
            for name, value in values.items():
                pl_module.log(f"train/compute_{name}", value)

    @override
    def start(self) -> None:
        self._evaluated = torch.zeros(2, device=self.task.device)

    @override
    def keep(self, batch: Batch, outputs: Any) -> None:
        shares = self._shares(self._compute(self.task)).mean(0)
        forget(self.task.network)
        self._evaluated += torch.stack([shares.sum(), torch.ones_like(shares).sum()])

    @override
    def merge(self) -> None:
        self._evaluated = torch.stack(gathered(self._evaluated.cpu())).sum(0)

    @override
    def metrics(self) -> Mapping[str, Tensor]:
        total, samples = self._evaluated.unbind()
        return {"compute_share": total / samples}

    @override
    def draw(self) -> Mapping[str, Figure]:
        assert self.place is not None
        lines = {"train": "train/compute_share", "val": "val/compute_share", "target": "train/compute_target"}
        panels = {
            "share of the dense compute": {line: self.place.series(name) for line, name in lines.items()},
            "weight of the penalty": {"train": self.place.series("train/compute_weight")},
        }
        return {"compute_budget": learning_curve(panels, self.place.title)}


def _network(pl_module: LightningModule) -> nn.Module:
    return pl_module.network  # type: ignore[return-value]


def _planned_share(compute: ExpectedCompute | LayerCompute) -> float:
    """Share of the dense compute that an inference takes by plan."""
    if compute.planned is None:
        raise Mistake("ComputeBudget: target 'planned' needs dynamic layers that keep to a plan; give a share instead")
    return compute.planned / (compute.dense_macs if isinstance(compute, ExpectedCompute) else compute.dense)


def _range_share(compute: ExpectedCompute | LayerCompute) -> float:
    """Share of the dense compute that the decisions can save."""
    if isinstance(compute, ExpectedCompute):
        least, dense = compute.least_macs, compute.dense_macs
    else:
        least, dense = compute.least, compute.dense
    if not least < dense:
        raise Mistake(f"ComputeBudget: span 'range' needs least compute ({least:g}) below dense ({dense:g})")
    return 1 - least / dense
