"""Layouts of detectors: recorded weights there and back, background, and names of other releases."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.official import detectron2, mmdet, torchvision_detectors
from tests.library.official_networks import weights

GOLDEN = Path(__file__).parents[2] / "golden" / "detectors"
LAYOUTS = {
    "convnext_mask_rcnn_eval": mmdet.LAYOUT,
    "convnext_cascade_eval": mmdet.LAYOUT,
    "d2_retinanet_eval": detectron2.LAYOUT,
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


def test_background_is_our_first_class() -> None:
    state = official("convnext_mask_rcnn_eval")
    theirs = state["roi_head.bbox_head.fc_cls.bias"]
    ours = mmdet.LAYOUT.to_ours(state)["roi_heads.0.box_predictor.cls_score.bias"]
    assert ours.tolist() == [theirs[-1].item(), *theirs[:-1].tolist()]


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        (
            "mask_rcnn",
            [
                (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
                (r"mask_head\.(\d)\.0\.", lambda match: f"mask_head.mask_fcn{int(match[1]) + 1}."),
            ],
        ),
        ("retinanet", [(r"_head\.conv\.(\d)\.0\.", lambda match: f"_head.conv.{2 * int(match[1])}.")]),
        ("fcos", []),
    ],
)
def test_released_weights_of_torchvision_have_older_names(name: str, renamed: list[tuple[str, Any]]) -> None:
    ours, layout = weights(f"torchvision_detectors/{name}"), torchvision_detectors.LAYOUT
    released = {}
    for key, value in layout.to_official(ours).items():
        for pattern, old in [(r"(backbone\.fpn\.\w+_blocks\.\d)\.0\.", r"\1."), *renamed]:
            key = re.sub(pattern, old, key)
        released[key] = value
    released["backbone.body.bn1.num_batches_tracked"] = torch.tensor(0)
    with pytest.warns(UserWarning, match=r"left out \(counters of frozen norms\): backbone.body.bn1"):
        back = layout.to_ours(released)
    assert back.keys() == ours.keys()
    assert all(torch.equal(value, ours[key]) for key, value in back.items())
