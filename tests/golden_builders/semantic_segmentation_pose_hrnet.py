"""Builder of the recorded pose network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.layers.hrnet import STAGES
from models.official import load
from models.official.hrnet import LAYOUT
from models.pose.hrnet_pose import HRNetPose

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def pose_hrnet(case: Case) -> dict[str, Tensor]:
    config = case.config
    # The published pose network has the same first stage at every width; its depth is shortened here.
    first = (1, [config["layer1_blocks"]], STAGES["w32"][0][2])
    network = HRNetPose(config["J"], [first, *config["stages"]], config["input"][1]).eval()
    load(network, LAYOUT.to_ours(case.state))
    with torch.no_grad():
        return {"out.heatmaps": network(case.inputs["image"])}


CASES = {"pose_hrnet": pose_hrnet}
