from typing import Any

import pytest
import timm
import torch

from models.official import LayoutError, deformable_detr, solq, system_of
from tests.models.detectors.deformable_networks import VARIANTS, small, small_solq

SWIN: dict[str, Any] = {
    "backbone": "swin_tiny_dense",
    "backbone_options": {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 3},
    "frozen_stages": 0,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_deformable_detr_there_and_back(name: str) -> None:
    ours = small(**VARIANTS[name]).state_dict()
    theirs = deformable_detr.to_official(ours)
    assert system_of(theirs) == system_of(ours, "official") == "deformable_detr"
    back = deformable_detr.to_ours(theirs | {"transformer.total_params": torch.zeros(1)})
    assert back.keys() == ours.keys()
    assert all(torch.equal(value, back[key]) for key, value in ours.items())
    copies = 3 if name == "two_stage" else 2
    assert sum(key.startswith("class_embed.") for key in theirs) == 2 * copies
    assert ("transformer.decoder.bbox_embed.1.layers.0.weight" in theirs) == (name in ("refine", "two_stage"))
    assert ("transformer.decoder.class_embed.2.bias" in theirs) == (name == "two_stage")


@pytest.mark.parametrize("options", [{}, SWIN], ids=["resnet", "swin"])
def test_solq_there_and_back(options: dict[str, Any]) -> None:
    ours = small_solq(**options).state_dict()
    theirs = solq.to_official(ours)
    assert system_of(theirs) == system_of(ours, "official") == "solq"
    assert "vector_embed.1.layers.2.bias" in theirs
    back = solq.to_ours(theirs)
    assert back.keys() == ours.keys()
    assert all(torch.equal(value, back[key]) for key, value in ours.items())


def test_keys_of_a_swin() -> None:
    theirs = solq.to_official(small_solq(**SWIN).state_dict())
    body = "backbone.0.body."
    assert theirs[f"{body}layers.0.downsample.reduction.weight"].shape == (16, 32)
    assert f"{body}layers.3.downsample.reduction.weight" not in theirs
    timms = timm.create_model("swin_tiny_patch4_window7_224", **SWIN["backbone_options"], always_partition=True)
    index = timms.layers[2].blocks[1].attn.relative_position_index
    assert torch.equal(theirs[f"{body}layers.2.blocks.1.attn.relative_position_index"], index)
    assert {f"{body}norm{i}.weight" for i in (1, 2, 3)} <= theirs.keys()


def test_copies_must_be_equal() -> None:
    for layout, network, name in (
        (deformable_detr, small(), "class_embed.1.bias"),
        (deformable_detr, small(refine=True), "transformer.decoder.bbox_embed.1.layers.0.bias"),
        (solq, small_solq(), "vector_embed.1.layers.0.bias"),
    ):
        theirs = layout.to_official(network.state_dict())
        with pytest.raises(LayoutError, match=f"{name} repeats .* they differ"):
            layout.to_ours(theirs | {name: theirs[name] + 1})


def test_missing_and_unknown_keys_are_named() -> None:
    theirs = deformable_detr.to_official(small().state_dict())
    with pytest.raises(LayoutError, match=r"unknown transformer\.extra"):
        deformable_detr.to_ours(theirs | {"transformer.extra": torch.zeros(1)})
    del theirs["transformer.encoder.layers.0.norm1.bias"]
    with pytest.raises(LayoutError, match=r"missing transformer\.encoder\.0\.attention_norm\.bias"):
        deformable_detr.to_ours(theirs)
    with pytest.raises(LayoutError, match="no backbone"):
        deformable_detr.to_ours({"transformer.level_embed": torch.zeros(1)})
