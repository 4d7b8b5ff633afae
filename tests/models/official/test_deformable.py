from typing import Any

import pytest
import timm
import torch

from models.official import LayoutError, deformable_detr, solq
from tests.library.deformable_networks import VARIANTS, small, small_solq

SWIN: dict[str, Any] = {
    "backbone": "swin_tiny_dense",
    "backbone_options": {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 3},
    "frozen_stages": 0,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_heads_are_repeated(name: str) -> None:
    theirs = deformable_detr.LAYOUT.to_official(small(**VARIANTS[name]).state_dict())
    copies = 3 if name == "two_stage" else 2
    assert sum(key.startswith("class_embed.") for key in theirs) == 2 * copies
    assert ("transformer.decoder.bbox_embed.1.layers.0.weight" in theirs) == (name in ("refine", "two_stage"))
    assert ("transformer.decoder.class_embed.2.bias" in theirs) == (name == "two_stage")


def test_a_detector_has_a_backbone() -> None:
    theirs = solq.LAYOUT.to_official(small_solq().state_dict())
    with pytest.raises(LayoutError, match=r"missing backbone\.0\.body\.\*$"):
        solq.LAYOUT.to_ours({name: value for name, value in theirs.items() if not name.startswith("backbone.")})


def test_keys_of_a_swin() -> None:
    theirs = solq.LAYOUT.to_official(small_solq(**SWIN).state_dict())
    body = "backbone.0.body."
    assert theirs[f"{body}layers.0.downsample.reduction.weight"].shape == (16, 32)
    assert f"{body}layers.3.downsample.reduction.weight" not in theirs
    timms = timm.create_model("swin_tiny_patch4_window7_224", **SWIN["backbone_options"], always_partition=True)
    index = timms.layers[2].blocks[1].attn.relative_position_index
    assert torch.equal(theirs[f"{body}layers.2.blocks.1.attn.relative_position_index"], index)
    assert {f"{body}norm{i}.weight" for i in (1, 2, 3)} <= theirs.keys()
