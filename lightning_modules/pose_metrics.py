"""How near found joints are to the annotated ones: PCKh, and a rough accuracy on heat maps while training."""

from __future__ import annotations

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


class PCKh(Metric):
    """Share of annotated joints that are found within a part of the head's size, in percent, over all processes.

    `pckh` is PCKh@0.5 over all joints but pelvis and thorax, each joint of each person counted once; `pckh_head`,
    `pckh_shoulder` ... are means over the left and the right joint. `pckh_01` is what the published tables call
    Mean@0.1, which is at 0.11; `pckh_01_exact` is at 0.1. What no joint is annotated for is NaN.

    Reference: "2D Human Pose Estimation: New Benchmark and State of the Art Analysis", CVPR 2014; the head's size is
    0.6 times the diagonal of the head's box.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        # Counts, so that the order and the sharing of samples cannot change a digit.
        zeros = torch.zeros(NUM_JOINTS, dtype=torch.int64)
        self.hits: Tensor
        self.annotated: Tensor
        self.add_state("hits", zeros.repeat(len(THRESHOLDS), 1), dist_reduce_fx="sum")
        self.add_state("annotated", zeros, dist_reduce_fx="sum")

    def update(self, joints: Tensor, truth: Tensor, head_size: Tensor) -> None:
        """Counts the joints of some people.

        Args:
            joints: x, y in pixels, [B, 16, 2].
            truth: x, y in pixels and 1 where annotated, else 0, [B, 16, 3].
            head_size: 0.6 times the diagonal of the head's box in pixels, [B].
        """
        distances = (joints - truth[..., :2]).norm(dim=2) / head_size[:, None]
        annotated = truth[..., 2] > 0
        limits = distances.new_tensor(list(THRESHOLDS.values()))
        self.hits += ((distances <= limits[:, None, None]) & annotated).sum(1)
        self.annotated += annotated.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """All of them by name, scalars in percent."""
        scored = [joint for joint in range(NUM_JOINTS) if joint not in OUTSIDE_MEAN]
        means = 100 * self.hits[:, scored].sum(1) / self.annotated[scored].sum()
        by_joint = 100 * self.hits[0] / self.annotated
        parts = {f"pckh_{part}": by_joint[list(joints)].nanmean() for part, joints in PARTS.items()}
        return dict(zip(THRESHOLDS, means.unbind(), strict=True)) | parts


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
