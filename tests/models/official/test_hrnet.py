from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from models.layers.hrnet import HRNet
from models.official import LayoutError, absent_parts, foreign, layout_of, load, spare_parts, system_of
from models.pose.adpc_pose import ADPCPose
from models.pose.hrnet_pose import HRNetPose
from models.segmenters.adpc import ADPC
from models.segmenters.hrnet_segmenter import HRNetSegmenter
from tests.library.adpc_networks import TINY

NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "segmenter": ("hrnet", lambda: HRNetSegmenter(5, TINY["stages"])),
    "pose": ("hrnet", lambda: HRNetPose(4, TINY["stages"])),
    "ee": ("adpc", lambda: ADPC(**(TINY | {"pooled_dim": None, "threshold": None}))),
    "rh": ("adpc", lambda: ADPC(**TINY, threshold=None)),
    "ee_ca": ("adpc", lambda: ADPC(**(TINY | {"pooled_dim": None}))),
    "adpc": ("adpc", lambda: ADPC(**TINY)),
    "equal_widths": ("adpc", lambda: ADPC(**(TINY | {"stages": [(1, [2], [16]), *TINY["stages"][1:]]}))),
}


def imagenet(trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of classification on a trunk."""
    ends = ("incre_modules.0.0.conv1", "downsamp_modules.0.0", "final_layer.0", "final_layer.1", "classifier")
    return trunk | {f"{end}.weight": torch.ones(1) for end in ends}


def trunk_of(stages: Any) -> dict[str, Tensor]:
    return {f"backbone.{name}": value for name, value in HRNet(stages).state_dict().items()}


def test_imagenet_weights_leave_the_trunk_and_say_so() -> None:
    trunk = HRNet(TINY["stages"]).state_dict()
    assert system_of(imagenet(trunk)) == system_of(trunk) == "hrnet_imagenet"
    with pytest.warns(UserWarning, match=r"classification\): incre_modules.*, final_layer \(2 tensors\), classifier"):
        ours = layout_of("hrnet_imagenet").to_ours(imagenet(trunk))
    assert ours.keys() == trunk_of(TINY["stages"]).keys()
    assert system_of(ours, "official") == "hrnet_imagenet"
    assert not foreign(ours)
    back = layout_of("hrnet_imagenet").to_official(ours)
    assert back.keys() == trunk.keys()
    assert all(torch.equal(back[name], trunk[name]) for name in trunk)
    # Nothing is left out of a bare trunk.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layout_of("hrnet_imagenet").to_ours(back)


@pytest.mark.filterwarnings("ignore:left out")
def test_imagenet_weights_are_checked() -> None:
    trunk = HRNet(TINY["stages"]).state_dict()
    with pytest.raises(LayoutError, match="unknown aux"):
        layout_of("hrnet_imagenet").to_ours(imagenet(trunk) | {"aux.weight": torch.ones(1)})
    for kept in (trunk, trunk_of(TINY["stages"])):
        torn = {name: value for name, value in kept.items() if not name.endswith("stage3.0.branches.1.0.conv1.weight")}
        convert = layout_of("hrnet_imagenet").to_ours if kept is trunk else layout_of("hrnet_imagenet").to_official
        with pytest.raises(LayoutError, match=r"missing .*stage3\.0\.branches\.1\.0\.conv1\.weight"):
            convert(torn)


@pytest.mark.parametrize("name", ["hrnet_w18_small_v2", "hrnet_w32", "hrnet_w48"])
def test_imagenet_weights_of_timm_fit_our_networks(name: str) -> None:
    stages = name.removeprefix("hrnet_")
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
        with pytest.warns(UserWarning, match="left out"):
            ours = layout_of("hrnet_imagenet").to_ours(state)
        for network in (
            ADPC(stages=stages),
            HRNetSegmenter(stages=stages),
            HRNetPose(stages=stages),
            ADPCPose(4, stages),
        ):
            fresh = load(network, ours)
            assert set(fresh) == network.state_dict().keys() - ours.keys()


STARTS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "segmenter": (lambda: HRNetSegmenter(5, TINY["stages"]), {"head"}),
    "pose": (lambda: HRNetPose(4, TINY["stages"]), {"head"}),
    "adaptive_pose": (lambda: ADPCPose(4, TINY["stages"]), {"exits", "falloffs of masked convolutions"}),
    "rh": (lambda: ADPC(**TINY, threshold=None), {"exits"}),
    "adpc": (lambda: ADPC(**TINY), {"exits", "falloffs of masked convolutions"}),
}


@pytest.mark.parametrize("name", STARTS)
def test_training_starts_from_a_trunk(name: str) -> None:
    build, parts = STARTS[name]
    network, trunk = build(), trunk_of(TINY["stages"])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    spare = {key for names in spare_parts(network, trunk).values() for key in names}
    # The last of the stage's modules is the first: only the sums of coarser branches have no place.
    coarser = {key for key in trunk if key.startswith(tuple(f"backbone.stage4.0.fuse_layers.{i}." for i in (1, 2, 3)))}
    assert spare == (coarser if "pose" in name else set())
    assert absent_parts(network, trunk).keys() == parts
    fresh = load(network, trunk)
    assert set(fresh) == before.keys() - trunk.keys()
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] if key in fresh else trunk[key]), key
    for torn in ({k: v for k, v in trunk.items() if k != "backbone.bn1.bias"}, trunk | {"backbone.aux": torch.ones(1)}):
        with pytest.raises(LayoutError, match=r"missing backbone\.bn1\.bias|unknown backbone\.aux"):
            load(build(), torn)


@pytest.mark.parametrize("pooled_dim", [None, 6])
def test_adaptive_training_starts_from_every_pixel(pooled_dim: int | None) -> None:
    options = TINY | {"pooled_dim": pooled_dim}
    everywhere, network = ADPC(**options, threshold=None).state_dict(), ADPC(**options)
    fresh = load(network, everywhere)
    state = network.state_dict()
    assert set(fresh) == {key for key in state if key.endswith(".falloff")} == state.keys() - everywhere.keys()
    assert all(torch.equal(state[key], everywhere[key]) for key in everywhere)
    # Of the exits, or the falloffs, all or none.
    for lost in ("exits.2.classifier.bias", "exits.2.classifier.falloff"):
        torn = {key: value for key, value in state.items() if key != lost}
        with pytest.raises(LayoutError, match=f"missing {lost}$"):
            load(ADPC(**options), torn)
