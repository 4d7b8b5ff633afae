"""From a picture's pixels to a network's answers, for every system with an official layout: convert, --weights, data.

What the sheet of a system says of its images is written here once more, as arithmetic on bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from jsonargparse import Namespace
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from datamodules import Coco, DataModule, ImageFolder
from exp import convert
from exp.pixels import hand_over
from exp.weights import start_from, to_evaluate
from models import official
from models.classifiers import WideResNet
from models.segmenters.hrnet_segmenter import HRNetSegmenter
from tests.library.official_networks import BUILD, STAGES

# Bytes [H,W,3], RGB, as float64, to what the network takes.
Sheet = Callable[[np.ndarray], np.ndarray]


def torch_style(rgb: np.ndarray) -> np.ndarray:
    return (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def mmdetection(rgb: np.ndarray) -> np.ndarray:
    return (rgb - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]


def caffe_style(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., [2, 1, 0]] - [103.53, 116.28, 123.675]


def inception_style(rgb: np.ndarray) -> np.ndarray:
    return (rgb - 127.5) / 127.5


def cifar10_port(rgb: np.ndarray) -> np.ndarray:
    return (rgb / 255 - [0.4914, 0.4822, 0.4465]) / [0.2471, 0.2435, 0.2616]


def cifar10(rgb: np.ndarray) -> np.ndarray:
    return (rgb / 255 - [0.4914, 0.4824, 0.4467]) / [0.2471, 0.2435, 0.2616]


def cifar10_mean_teacher(rgb: np.ndarray) -> np.ndarray:
    return (rgb / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]


def cifar10_pruned(rgb: np.ndarray) -> np.ndarray:
    return (rgb / 255 - [0.4914, 0.4822, 0.4465]) / [0.2023, 0.1994, 0.2010]


# Of networks without published weights: what the data set has always had.
unpublished = torch_style
SHEETS: dict[str, Sheet] = {
    "adpc/all": torch_style,
    "autoformer": torch_style,
    "byol": torch_style,
    "condconv": unpublished,
    "condconv/efficientnet": inception_style,
    "container": torch_style,
    "convnext": torch_style,
    "convnext/isotropic": torch_style,
    "deformable_detr": torch_style,
    "detectron2": caffe_style,
    "detr": torch_style,
    "detr/masks": torch_style,
    "dge/deit": torch_style,
    "dge/pvt": torch_style,
    "dino": torch_style,
    "drconv": unpublished,
    "drnet": torch_style,
    "dvt/deit": torch_style,
    "dvt/t2t": torch_style,
    "dyfpn": mmdetection,
    "dynamic_conv": unpublished,
    "dynamic_routing": caffe_style,
    "dynamic_routing/all": caffe_style,
    "fixmatch/cifar10": cifar10_port,
    "hrnet/segmenter": torch_style,
    "hrnet/pose": torch_style,
    "hrnet_imagenet": torch_style,
    "mean_teacher": cifar10_mean_teacher,
    "mmdet": mmdetection,
    "mmdet/cascade": mmdetection,
    "moco": torch_style,
    "pruned_regression": torch_style,
    "pruned_resnet": cifar10_pruned,
    "pruned_vgg/linear": cifar10_pruned,
    "pruned_vgg/imagenet": torch_style,
    "ranet": cifar10,
    "ranet/imagenet": torch_style,
    "slimmed/preact": cifar10_pruned,
    "slimmed/dense": cifar10_pruned,
    "smca/type3": torch_style,
    "solq": torch_style,
    "solq/swin": torch_style,
    "spatial_ensemble": torch_style,
    "torchvision_detectors/mask_rcnn": torch_style,
    "torchvision_detectors/retinanet": torch_style,
    "torchvision_detectors/fcos": torch_style,
    "upernet": mmdetection,
}
# Systems that take features of images, made beforehand.
WITHOUT_PIXELS = {"trar"}
DETECTORS = ("deformable_detr", "detectron2", "detr", "dyfpn", "mmdet", "smca", "solq", "torchvision_detectors")
SIDE = {"dvt/deit": 32, "dvt/t2t": 32, "ranet": 32, "ranet/imagenet": 96} | dict.fromkeys(DETECTORS, 160)
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "condconv/efficientnet": lambda: timm.create_model("condconv_efficientnet_b0_4e", num_classes=4),
    "fixmatch/cifar10": lambda: WideResNet(10, 2, 10, base_width=4, dead_preact=True),
    # Whose trunk alone the weights are of.
    "hrnet_imagenet": lambda: HRNetSegmenter(5, STAGES),
}


def test_there_is_a_sheet_for_every_system() -> None:
    assert {name.partition("/")[0] for name in SHEETS} == set(official.systems()) - WITHOUT_PIXELS


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = (OTHERS.get(name) or BUILD[name])().eval()
    if hasattr(network, "score_threshold"):
        network.score_threshold = 0.0  # type: ignore[assignment]
    return network


@torch.no_grad()
def lively(network: nn.Module, name: str) -> nn.Module:
    """A network with weights with which images matter: a start may let next to nothing through a layer."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        usual = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        if parameter.ndim == 1 or parameter.std() < usual / 2:
            parameter += usual * noise
    if SHEETS[name] is caffe_style:
        next(network.parameters()).div_(60)
    if name.partition("/")[0] not in DETECTORS:
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            norm.train().momentum = 1.0
        side, spread = SIDE.get(name, 64), 60 if SHEETS[name] is caffe_style else 1
        network(spread * torch.randn(2, 3, side, side, generator=generator))
    return network.eval()


def same_share(answer: Tensor, other: Tensor) -> float:
    """Share of the numbers that are alike; thresholds may turn over what lies on them, such as a mask's border."""
    if answer.shape != other.shape:
        return 0.0
    return float(((answer - other).abs() <= 1e-3 * other.abs().max()).double().mean())


def picture(path: Path, side: int) -> np.ndarray:
    """Writes a picture, the channels of which are unlike each other."""
    rows, columns = np.mgrid[:side, :side] * (255 / side)
    rgb = np.stack([rows, 255 - columns, 40 + 0.2 * (rows + columns)], 2)
    rgb = (rgb + np.random.default_rng(0).normal(0, 20, rgb.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(rgb).save(path)
    return rgb.astype(float)


@pytest.mark.parametrize("name", SHEETS)
def test_pictures_reach_converted_weights_as_its_sheet_says(name: str, tmp_path: Path) -> None:
    system = name.partition("/")[0]
    theirs, mine = tmp_path / "theirs.pth", tmp_path / "mine.safetensors"
    network = lively(built(name), name)
    state = network.state_dict()
    if name == "hrnet_imagenet":
        state = {key: value for key, value in state.items() if key.startswith("backbone.")}
    torch.save({"model": official.layout_of(system).to_official(state)}, theirs)
    assert convert.main([str(theirs), str(mine), "--system", system]) == 0

    rgb = picture(tmp_path / "picture.png", SIDE.get(name, SIDE.get(system, 64)))
    kind: Any = Coco if system in DETECTORS else ImageFolder
    data: DataModule = kind(tmp_path / "none", batch_size=1, num_workers=0, eval_transforms=[])
    if name != "hrnet_imagenet":
        network = built(name)
    cli: Any = SimpleNamespace(
        command="predict",
        config=Namespace(ckpt_path=None, weights=str(mine), runs=str(tmp_path)),
        model=nn.ModuleDict({"network": network}),
        datamodule=data,
        trainer=SimpleNamespace(is_global_zero=True),
    )
    cli.model.network = network
    if name == "hrnet_imagenet":
        # What a training starts from is no whole network.
        hand_over(cli, {"network": (mine, start_from(cli, mine).pixels)})
    else:
        assert to_evaluate(cli) == mine

    data.predict_paths = [tmp_path / "picture.png"]
    data.setup("predict")
    images = data.on_after_batch_transfer(next(iter(data.predict_dataloader())), 0)["image"]
    expected = torch.from_numpy(SHEETS[name](rgb)).permute(2, 0, 1)
    torch.testing.assert_close(images[0].double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    reference = expected.float()
    with torch.no_grad():
        answers, right, dark = (
            [leaf.double() for leaf in tree_leaves(network(given if system in DETECTORS else torch.stack(given)))]
            for given in (list(images), [reference], [torch.zeros_like(reference)])
        )
    assert len(answers) == len(right) > 0
    for answer, expected in zip(answers, right, strict=True):
        assert same_share(answer, expected) > 0.99
    assert min(same_share(answer, expected) for answer, expected in zip(answers, dark, strict=True)) < 0.5
