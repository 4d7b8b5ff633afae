"""Every system's network as an ONNX file, against itself: tiny ones, with several numbers and sizes of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from datamodules import Pixels
from exp.exporting.comparing import compare, tolerances
from exp.exporting.formats import Manifest, OnnxFile
from exp.exporting.graph import Portable, trace
from lightning_modules import Classification, Detection, PoseEstimation, Segmentation
from models.pose.hrnet_pose import HRNetPose
from tests.library.official_networks import BUILD, STAGES

PIXELS = Pixels((104.0, 117.0, 123.0), (57.5, 57.0, 58.0), order="bgr", scale=255.0)
# Learners, trunks, and networks for something else than images.
NO_TASKS = ("byol", "dino", "hrnet_imagenet", "moco", "spatial_ensemble", "trar", "convnext/dense")
SEGMENTERS = ("adpc", "dynamic_routing", "hrnet/segmenter", "upernet")
NETWORKS = [
    name
    for name in BUILD
    if not name.startswith(NO_TASKS) and not name.endswith("without_head") and name != "hrnet/pose"
]
# Networks for images of one size, by the beginning of their names; the others take any.
SIDES = {
    # Of pools in the heads of masked layers the exporter cannot solve sizes for all images.
    "adpc/all": 64,
    "adpc/equal_widths": 64,
    "dge/deit": 32,
    "dge/no_class_token": 32,
    "dge/dpvt": 64,
    "dge/plain_pvt": 64,
    "dge/pvt": 64,
    "dvt": 32,
    "pruned_vgg/hidden": 32,
    "pruned_vgg/imagenet": 64,
    "pruned_vgg/linear": 32,
    "ranet": 32,
    "ranet/imagenet": 64,
    "upernet": 64,
}
# Whose coarsest maps need larger images than 64 pixels.
LARGE = {"torchvision_detectors/fcos": 256, "deformable_detr": 128, "dynamic_routing": 128, "solq": 128}
QUICK = ("slimmed/preact",)


# By what a fresh classifier of a detector is multiplied, to tell its places apart.
SPREAD = 30


def settled(network: nn.Module) -> nn.Module:
    """With norms that have seen something, and detectors that find something."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.05, generator=generator)
            module.running_var.uniform_(0.9, 1.1, generator=generator)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    if hasattr(network, "score_threshold"):
        network.score_threshold = 0.01
    for name, parameter in network.named_parameters():
        # Fresh weights give all places nearly one score, and then rounding decides which are first.
        if name.endswith(("cls_logits.weight", "cls_score.weight")):
            parameter.data *= SPREAD
    return network.eval()


def task_of(name: str, network: nn.Module) -> Any:
    if hasattr(network, "has_masks"):
        return Detection(network, 5)
    if name == "pose":
        return PoseEstimation(network)
    return Segmentation(network, 5) if name.startswith(SEGMENTERS) else Classification(network, 5)


def check(name: str, network: nn.Module, folder: Path) -> dict[str, torch.Size]:
    """Exports, compares, and returns the shapes of what is said of an image."""
    task = task_of(name, settled(network))
    side = SIDES.get(name, next((side for beginning, side in SIDES.items() if name.startswith(beginning)), None))
    any_size = side is None
    side = side or next((side for beginning, side in LARGE.items() if name.startswith(beginning)), 64)
    module = Portable(task, PIXELS).eval()
    random = torch.Generator().manual_seed(2)
    shapes = [(number, side, side) for number in ((2, 1, 3) if task.answers_batches else (1,))]
    shapes += [(1, side + 32, side + 64)] if any_size else []
    batches = [255 * torch.rand(number, 3, *size, generator=random) for number, *size in shapes]
    graph = trace(module, batches[0], any_size)
    path = folder / "network.onnx"
    size = None if any_size else (side, side)
    OnnxFile.write(graph, batches[0], Manifest("", [], graph.names, size, graph.any_batch, PIXELS.plain(), {}), path)
    differences = compare(module.answer, OnnxFile(path), batches)
    most = tolerances(module, batches, differences)
    assert all(difference <= most[output] for output, difference in differences.items()), (differences, most)
    return {output: each.shape for output, each in module.answer(batches[0][:1]).items()}


@pytest.mark.parametrize(
    "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in NETWORKS]
)
def test_file_says_what_the_network_says(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = check(name, BUILD[name](), tmp_path)
    if "boxes" in shapes:
        assert shapes["boxes"][1] > 0, "nothing is found, so nothing is compared"


@pytest.mark.slow
def test_poses(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert check("pose", HRNetPose(16, STAGES), tmp_path) == {"heatmaps": (1, 16, 16, 16)}
