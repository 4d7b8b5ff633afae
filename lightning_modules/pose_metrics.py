"""How near found joints are to the annotated ones: PCKh, PCK, and a rough accuracy on heat maps while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from models.pose.decoding import peaks

# MPII's joints, as its tables put them together.
PARTS: dict[str, tuple[int, ...]] = {
    "head": (9,),
    "shoulder": (12, 13),
    "elbow": (11, 14),
    "wrist": (10, 15),
    "hip": (2, 3),
    "knee": (1, 4),
    "ankle": (0, 5),
}
NUM_JOINTS = 16
# Pelvis and thorax.
OUTSIDE_MEAN = (6, 7)
# The published code reads its "Mean@0.1" off a table of thresholds one place too late.
THRESHOLDS = {"pckh": 0.5, "pckh_01": 0.11, "pckh_01_exact": 0.1}
# Of any people, by the longer sides of their boxes.
BOX_THRESHOLDS = {"pck": 0.1, "pck_005": 0.05}


class NearJoints(Metric):
    """Counts the annotated joints that are found within some parts of a length, over all processes.

    Args:
        num_joints: how many joints a person has, J.
        thresholds: parts of the length, by name.
    """

    full_state_update = False

    def __init__(self, num_joints: int, thresholds: Mapping[str, float]) -> None:
        super().__init__()
        self.thresholds = dict(thresholds)
        # Counts, so that the order and the sharing of samples cannot change a digit.
        zeros = torch.zeros(num_joints, dtype=torch.int64)
        self.hits: Tensor
        self.annotated: Tensor
        self.add_state("hits", zeros.repeat(len(self.thresholds), 1), dist_reduce_fx="sum")
        self.add_state("annotated", zeros, dist_reduce_fx="sum")

    def update(self, joints: Tensor, truth: Tensor, length: Tensor) -> None:
        """Counts the joints of some people.

        Args:
            joints: x, y in pixels, [B, J, 2].
            truth: x, y in pixels and 1 where annotated, else 0, [B, J, 3].
            length: what errors are measured in, in pixels, [B].
        """
        distances = (joints - truth[..., :2]).norm(dim=2) / length[:, None]
        annotated = truth[..., 2] > 0
        limits = distances.new_tensor(list(self.thresholds.values()))
        self.hits += ((distances <= limits[:, None, None]) & annotated).sum(1)
        self.annotated += annotated.sum(0)

    def shares(self, joints: Sequence[int] | None = None) -> dict[str, Tensor]:
        """The share of some joints, or all, within each part, in percent; NaN where none is annotated."""
        chosen = slice(None) if joints is None else list(joints)
        found = 100 * self.hits[:, chosen].sum(1) / self.annotated[chosen].sum()
        return dict(zip(self.thresholds, found.unbind(), strict=True))


class PCK(NearJoints):
    """Share of annotated joints that are found within a tenth of the longer side of the person's box, in percent.

    `pck` is at a tenth, `pck_005` at a twentieth; each joint of each person counts once. The length is that side.

    Reference: "Articulated Human Detection with Flexible Mixtures of Parts", PAMI 2013, section 6.2, with its
    alpha = 0.1.

    Args:
        num_joints: how many joints a person has, J.
    """

    def __init__(self, num_joints: int) -> None:
        super().__init__(num_joints, BOX_THRESHOLDS)

    def compute(self) -> dict[str, Tensor]:
        """Both by name, scalars in percent."""
        return self.shares()


class PCKh(NearJoints):
    """Share of annotated joints that are found within a part of the head's size, in percent, over all processes.

    `pckh` is PCKh@0.5 over all joints but pelvis and thorax, each joint of each person counted once; `pckh_head`,
    `pckh_shoulder` ... are means over the left and the right joint. `pckh_01` is what the published tables call
    Mean@0.1, which is at 0.11; `pckh_01_exact` is at 0.1. What no joint is annotated for is NaN.

    Reference: "2D Human Pose Estimation: New Benchmark and State of the Art Analysis", CVPR 2014; the head's size is
    0.6 times the diagonal of the head's box.
    """

    def __init__(self) -> None:
        super().__init__(NUM_JOINTS, THRESHOLDS)

    def compute(self) -> dict[str, Tensor]:
        """All of them by name, scalars in percent."""
        scored = [joint for joint in range(NUM_JOINTS) if joint not in OUTSIDE_MEAN]
        by_joint = 100 * self.hits[0] / self.annotated
        parts = {f"pckh_{part}": by_joint[list(joints)].nanmean() for part, joints in PARTS.items()}
        return self.shares(scored) | parts


def heatmap_accuracy(heatmaps: Tensor, target: Tensor, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
    """Share of peaks within a twentieth of the map's size of the target's peaks, as published for progress in training.

    Distances along x are measured in tenths of the height and along y in tenths of the width, as published; joints
    whose target peaks in the first two columns or rows do not count.

    Args:
        heatmaps: [B, J, H, W].
        target: [B, J, H, W].
        threshold: In tenths of the map's size.

    Returns:
        Of each joint, [J], NaN where none counts; and the mean over the others, 0 if there is none.
    """
    (found, _), (there, _) = peaks(heatmaps), peaks(target)
    units = found.new_tensor(heatmaps.shape[2:]) / 10
    counted = (there > 1).all(2)
    near = (((found - there) / units).norm(dim=2) < threshold) & counted
    by_joint = near.sum(0) / counted.sum(0)
    return by_joint, by_joint.nanmean().nan_to_num(0.0)
