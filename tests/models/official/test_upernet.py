from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from models.official import LayoutError, load, system_of
from models.official.upernet import to_official, to_ours
from models.segmenters.upernet import UperNet
from tests.models.segmenters.test_upernet import TINY


def official(**changes: object) -> dict[str, Tensor]:
    return to_official(UperNet(**TINY | changes).state_dict())


@pytest.mark.parametrize("pool_sizes", [(1, 2, 3, 6), (2,)])
def test_there_and_back(pool_sizes: tuple[int, ...]) -> None:
    network = UperNet(**TINY, pool_sizes=pool_sizes)
    state = network.state_dict()
    assert system_of(state, "official") == "upernet"
    there = to_official(state)
    assert system_of(there) == "upernet"
    assert there[f"decode_head.psp_modules.{len(pool_sizes) - 1}.1.conv.weight"].shape == (8, 20, 1, 1)
    back = to_ours(there)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    load(UperNet(**TINY, pool_sizes=pool_sizes), back)


def test_no_key_may_be_missing_or_unknown() -> None:
    state = official()
    for key in state:
        with pytest.raises(LayoutError, match=f"missing .*{key.removeprefix('backbone.')}"):
            to_ours({name: value for name, value in state.items() if name != key})
    for key in ("decode_head.conv_seg.scale", "neck.weight", "backbone.norm4.weight", "backbone.stages.0.0.grn.weight"):
        with pytest.raises(LayoutError, match=f"unknown .*{key.removeprefix('backbone.')}|missing norm4.bias"):
            to_ours(state | {key: torch.ones(1)})


def test_a_backbone_alone_is_not_this_system() -> None:
    dense = timm.create_model("convnext_tiny_dense", features_only=True, **TINY["options"]).state_dict()
    assert system_of(dense, "official") == "convnext"
    with pytest.raises(LayoutError, match=r"missing auxiliary\.classifier\.bias"):
        to_official({f"backbone.{name}": value for name, value in dense.items()})
