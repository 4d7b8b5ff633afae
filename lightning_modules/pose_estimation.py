"""Pose estimation: any network that draws a heat map for each joint, at one exit or several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from typing_extensions import override

from lightning_modules.exits import (
    ExitMacs,
    ExitWeights,
    as_exits,
    countable,
    exit_suffixes,
    run_and_count,
    valid_exit_weights,
    weights_of,
)
from lightning_modules.exporting import ExitAnswers
from lightning_modules.findings import Findings, gathered
from lightning_modules.optimization import MakeOptimizer
from lightning_modules.pose_metrics import NUM_JOINTS, PCK, PCKh, heatmap_accuracy
from lightning_modules.task import Batch, Task
from models.mistakes import Mistake
from models.pose.decoding import decode, mirror_back

FlipTest = Literal["shifted", "unshifted", "none"]
Measure = Literal["pckh", "pck"]


@dataclass(frozen=True)
class PoseFindings(Findings):
    """What an evaluation found, ordered by the people's positions in the split; on the host.

    Args:
        metrics: What each exit reaches, by name; the names without an exit number are those of the last one.
        index: Positions, int64 [n].
        joints: x, y in pixels of the image, from 0, float32 [n,J,2].
        scores: Heat at each joint, float32 [n,J].
        truth: x, y and 1 where annotated, else 0, float32 [n,J,3].
    """

    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    joints: Tensor = field(default_factory=lambda: torch.empty(0, NUM_JOINTS, 2))
    scores: Tensor = field(default_factory=lambda: torch.empty(0, NUM_JOINTS))
    truth: Tensor = field(default_factory=lambda: torch.empty(0, NUM_JOINTS, 3))


class PoseEstimation(ExitAnswers, Task):
    """Trains a pose network on heat maps, and evaluates it by PCKh, or by PCK for joints of any kind.

    Training batches are dicts of `image` [B, 3, H, W], `heatmaps` [B, J, h, w], `weight` [B, J] (0 for joints without a
    target) and `index` [B]; evaluation batches also have `centre` [B, 2], `scale` [B], `joints` [B, J, 3] and
    `head_size` [B] (see `datamodules.MPII`). A network that returns a list of heat maps (cheapest exit first) is
    trained on the losses of all exits, and metrics are logged for each; names without an exit number are those of the
    last exit. `macs` are multiply-adds an image of the operators that ran up to the exit, and `published_macs` the same
    as the paper of the network counts them, if it says; a flip test runs twice as many.

    The data module's `mirrored` says which joint takes the place of each one in a mirror.

    Args:
        network: images [B, 3, H, W] -> heat maps [B, J, h, w], or a list of them, one per exit.
        measure: `pckh` is MPII's, of its 16 joints, in sizes of heads; `pck` that of any joints, in sizes of people
            (`datamodules.OwnPoses`).
        hardest_joints: train each sample on so many of its joints, those of the largest losses (online hard keypoint
            mining, arXiv 1711.07319); None for all.
        exit_weights: what the losses of the exits are multiplied by before they are added up, cheapest first: `sum` is
            1 for each, `mean` is 1 / exits.
        flip_test: also evaluate mirrored images and average the heat maps: `shifted`, as published, moves the mirrored
            ones by a cell, which `unshifted` leaves out; `none` evaluates images only.
        optimizer, options: see `Task`.

    Raises:
        Mistake: a network whose joints are not the data's, or for PCKh not MPII's 16; hardest joints, weights, a
            measure or a flip test that do not exist.
    """

    monitor_mode = "max"
    answer_name = "heatmaps"

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer = torch.optim.Adam,
        measure: Measure = "pckh",
        hardest_joints: int | None = None,
        exit_weights: ExitWeights = "sum",
        flip_test: FlipTest = "shifted",
        **options: Any,
    ) -> None:
        super().__init__(network, optimizer=optimizer, **options)
        joints = int(getattr(network, "num_joints", NUM_JOINTS))
        if measure not in get_args(Measure):
            raise Mistake(f"measure={measure!r} must be one of {', '.join(get_args(Measure))}")
        if measure == "pckh" and joints != NUM_JOINTS:
            raise Mistake(
                f"{type(network).__name__} finds {joints} joints, but PCKh is defined for MPII's {NUM_JOINTS}: set "
                f"num_joints={NUM_JOINTS}, or measure: pck"
            )
        if hardest_joints is not None and not 1 <= hardest_joints <= joints:
            raise Mistake(f"hardest_joints={hardest_joints} must be from 1 to {joints}, or None for all")
        if flip_test not in get_args(FlipTest):
            raise Mistake(f"flip_test={flip_test!r} must be one of {', '.join(get_args(FlipTest))}")
        self.num_joints, self.measure = joints, measure
        self.monitor, self.shown = f"val/{measure}", (measure,)
        self.hardest_joints, self.flip_test = hardest_joints, flip_test
        self.exit_weights = valid_exit_weights(exit_weights)
        self.evaluation: dict[str, MetricCollection] = {}
        self._found: list[dict[str, Tensor]] = []

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted losses of the exits, with penalties."""
        exits = as_exits(self(batch["image"]))
        weights = weights_of(self.exit_weights, len(exits), self.network)
        losses = [pose_losses(self._joint_losses(maps, batch), self.hardest_joints).mean() for maps in exits]
        named = {
            "heatmap" if len(exits) == 1 else f"exit{i}": loss * weight
            for i, (loss, weight) in enumerate(zip(losses, weights, strict=True))
        }
        _, accuracy = heatmap_accuracy(exits[-1].detach(), batch["heatmaps"])
        return self.total_loss(named, {"heatmap_accuracy": accuracy}, len(batch["image"]))

    @override
    def start(self, split: str) -> None:
        self._found = []
        for metrics in self.evaluation.values():
            metrics.reset()

    @override
    def count(self, batch: Batch, split: str) -> dict[str, Any]:
        """Counts a batch; returns nothing, for `findings` has everybody."""
        exits, spent = self._tested(batch["image"], counted=not self.compile_network and countable(self.network))
        costs = {} if spent is None else {"macs": spent.executed, "published_macs": spent.published}
        for i, (name, maps) in enumerate(zip(exit_suffixes(len(exits)), exits, strict=True)):
            joints, scores = decode(maps, batch["centre"], batch["scale"])
            if name not in self.evaluation:
                near = PCKh() if self.measure == "pckh" else PCK(self.num_joints)
                metrics: dict[str, Any] = {"loss": MeanMetric(nan_strategy="disable"), self.measure: near}
                metrics |= {kind: MeanMetric() for kind, macs in costs.items() if macs}
                self.evaluation[name] = MetricCollection(metrics, compute_groups=False).to(maps.device)
            found = self.evaluation[name]
            losses = self._joint_losses(maps, batch)
            found["loss"].update(pose_losses(losses, self.hardest_joints))
            found[self.measure].update(joints, batch["joints"], batch["head_size"])
            for kind, macs in costs.items():
                if macs:
                    found[kind].update(macs[i], weight=len(maps))
        self._found.append({"index": batch["index"], "joints": joints, "scores": scores, "truth": batch["joints"]})
        return {}

    @override
    def finish(self, split: str) -> Findings:
        values: dict[str, Tensor] = {}
        for name, metrics in self.evaluation.items():
            # The collection flattens what these compute.
            values |= {f"{key}{name}": value for key, value in metrics.compute().items()}
        own = {key: torch.cat([batch[key] for batch in self._found]).cpu() for key in (self._found or [{}])[0]}
        self._found = []
        people = [each for each in gathered(own) if each]
        if not people:
            return Findings(values)
        fields = {key: torch.cat([each[key] for each in people]) for key in people[0]}
        order = fields["index"].argsort()
        return PoseFindings(values, **{key: value[order] for key, value in fields.items()})

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Joints [B, J, 2] in pixels of the images, their scores [B, J], and the samples' indices [B]."""
        # Predictions are timed, and counting takes time.
        exits, _ = self._tested(batch["image"], counted=False)
        joints, scores = decode(exits[-1], batch["centre"], batch["scale"])
        return {"index": batch["index"], "joints": joints, "scores": scores}

    def _tested(self, images: Tensor, counted: bool) -> tuple[list[Tensor], ExitMacs | None]:
        """Heat maps of every exit, averaged with those of the mirrored images if asked to; and what they cost without.

        Args:
            images: [B, 3, H, W].
            counted: whether to count, which a compiled network cannot be, as its operators do not show.
        """
        spent = None
        if counted:
            exits, spent = run_and_count(self.network, self.in_memory_order(images))
        else:
            exits = as_exits(self(images))
        exits = [maps.float() for maps in exits]
        if self.flip_test == "none":
            return exits, spent
        mirrored = self.data.mirrored
        if len(mirrored) != self.num_joints:
            raise Mistake(
                f"the data name {len(mirrored)} joints that a mirror exchanges, and the network finds "
                f"{self.num_joints}: the data set is not here, or is another one; set flip_test: none"
            )
        flipped = as_exits(self(images.flip(3)))
        shift = self.flip_test == "shifted"
        averaged = [
            (maps + mirror_back(other.float(), mirrored, shift)) / 2 for maps, other in zip(exits, flipped, strict=True)
        ]
        return averaged, spent

    def _joint_losses(self, heatmaps: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if heatmaps.shape != batch["heatmaps"].shape:
            raise Mistake(
                f"{type(self.network).__name__} draws heat maps of {list(heatmaps.shape[1:])} (joints, height, width), "
                f"but the data has targets of {list(batch['heatmaps'].shape[1:])}"
            )
        return joint_losses(heatmaps, batch["heatmaps"], batch["weight"])


def joint_losses(heatmaps: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Half the mean squared difference of each joint's map; 0 for joints without a target.

    Args:
        heatmaps: [B, J, H, W].
        target: [B, J, H, W].
        weight: [B, J].

    Returns:
        float32 [B, J].
    """
    difference = (heatmaps.float() - target.float()) * weight[..., None, None]
    return 0.5 * difference.square().mean((2, 3))


def pose_losses(losses: Tensor, hardest: int | None = None) -> Tensor:
    """Mean of each sample's joint losses [B, J], or of its hardest ones only, [B].

    Joints without a target count as 0, as published (arXiv 1902.09212, arXiv 1711.07319).
    """
    return losses.mean(1) if hardest is None else losses.topk(hardest, 1).values.mean(1)
