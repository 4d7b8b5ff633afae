"""Layouts of detectors: there and back without loss, and strangers are named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.official import LayoutError, detectron2, mmdet

GOLDEN = Path(__file__).parents[2] / "golden" / "detectors"
LAYOUTS = {
    "convnext_mask_rcnn_eval": mmdet,
    "convnext_cascade_eval": mmdet,
    "d2_retinanet_eval": detectron2,
}


def official(case: str) -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    return {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}


@pytest.mark.parametrize("case", LAYOUTS)
def test_there_and_back(case: str) -> None:
    layout, state = LAYOUTS[case], official(case)
    ours = layout.to_ours(state)
    back = layout.to_official(ours)
    constants = {name for name in state if name.startswith(("pixel_", "anchor_generator."))}
    assert back.keys() == state.keys() - constants
    assert all(torch.equal(value, state[name]) for name, value in back.items())
    assert layout.matches(state)
    assert layout.matches_ours(ours)
    for other in {mmdet, detectron2} - {layout}:
        assert not other.matches(state)
        assert not other.matches_ours(ours)


def test_background_is_our_first_class() -> None:
    state = official("convnext_mask_rcnn_eval")
    theirs = state["roi_head.bbox_head.fc_cls.bias"]
    ours = mmdet.to_ours(state)["roi_heads.0.box_predictor.cls_score.bias"]
    assert ours.tolist() == [theirs[-1].item(), *theirs[:-1].tolist()]


@pytest.mark.parametrize("case", LAYOUTS)
def test_strangers_are_named(case: str) -> None:
    layout, state = LAYOUTS[case], official(case)
    with pytest.raises(LayoutError, match=r"unknown stranger\.weight"):
        layout.to_ours(state | {"stranger.weight": torch.ones(1)})
    with pytest.raises(LayoutError, match=r"unknown stranger\.weight"):
        layout.to_official(layout.to_ours(state) | {"stranger.weight": torch.ones(1)})
