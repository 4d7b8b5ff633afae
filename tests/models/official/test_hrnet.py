from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from models.backbones.hrnet import HRNet
from models.official import LayoutError, layout, load, system_of
from models.official.hrnet import imagenet_trunk
from models.pose.hrnet_pose import HRNetPose
from models.segmenters.adpc import ADPC
from models.segmenters.hrnet_segmenter import HRNetSegmenter
from tests.models.segmenters.test_adpc import TINY

NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "segmenter": ("hrnet", lambda: HRNetSegmenter(5, TINY["stages"])),
    "pose": ("hrnet", lambda: HRNetPose(4, TINY["stages"])),
    "ee": ("adpc", lambda: ADPC(**(TINY | {"pooled_dim": None, "threshold": None}))),
    "rh": ("adpc", lambda: ADPC(**TINY, threshold=None)),
    "ee_ca": ("adpc", lambda: ADPC(**(TINY | {"pooled_dim": None}))),
    "adpc": ("adpc", lambda: ADPC(**TINY)),
    "equal_widths": ("adpc", lambda: ADPC(**(TINY | {"stages": [(1, [2], [16]), *TINY["stages"][1:]]}))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name: str) -> None:
    system, build = NETWORKS[name]
    network = build()
    state = network.state_dict()
    assert system_of(state, "official") == system
    official = layout(system).to_official(state)
    assert system_of(official) == system
    wrapped = {f"model.{key}": value for key, value in official.items()}
    assert system_of(wrapped) == system
    for given in (official, wrapped):
        back = layout(system).to_ours(given)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state)
    load(build(), back)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_key_is_dropped_or_made_up(name: str) -> None:
    system, build = NETWORKS[name]
    official = layout(system).to_official(build().state_dict())
    for key in ("stage3.0.fuse_layers.0.1.0.weight", "stage2.0.branches.0.0.bn1.bias", "conv1.weight"):
        with pytest.raises(LayoutError, match="missing"):
            layout(system).to_ours({other: value for other, value in official.items() if other != key})
    with pytest.raises(LayoutError, match="unknown"):
        layout(system).to_ours(official | {"aux_head.weight": torch.ones(1)})
    with pytest.raises(LayoutError, match="unknown"):
        layout(system).to_ours(official | {"stage2.0.branches.0.0.conv3.weight": torch.ones(1)})


def test_distances_are_checked() -> None:
    official: dict[str, Any] = layout("adpc").to_official(ADPC(**TINY).state_dict())
    name = "transition1.0.0.square_dis"
    assert official[name].shape == (7, 7)
    with pytest.raises(LayoutError, match=r"square_dis: not the squared distances"):
        layout("adpc").to_ours(official | {name: official[name] + 1})
    with pytest.raises(LayoutError, match=r"square_dis without its Lambda"):
        layout("adpc").to_ours({key: value for key, value in official.items() if key != "transition1.0.0.Lambda"})


def test_imagenet_weights_of_timm_fit_the_trunk() -> None:
    with torch.device("meta"):
        state = timm.create_model("hrnet_w18_small_v2").state_dict()
        HRNet("w18_small_v2").load_state_dict(imagenet_trunk(state))
    with pytest.raises(LayoutError, match="unknown aux"):
        imagenet_trunk(state | {"aux.weight": torch.ones(1)})
