"""What `benchmarks.gpu` runs: the kernels that matter on a GPU, and a network of every system, tiny or as published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

import models.backbones  # noqa: F401  registers our networks with timm
from models.anytime import MultiExit, Policy, run
from models.classifiers import DVT, RANet
from models.classifiers.drnet import DRNet, ResolutionPredictor
from models.detectors.deformable_detr import DeformableDETR
from models.detectors.detr import DETR
from models.detectors.rcnn import FasterRCNN
from models.detectors.smca import SMCA
from models.detectors.solq import SOLQ
from models.layers.deformable_attention import DeformableAttention, Levels
from models.layers.per_sample_conv import per_sample_conv2d
from models.necks import DyFPN
from models.pose.hrnet_pose import HRNetPose
from models.segmenters.adpc import ADPC
from models.segmenters.dynamic_routing import DynamicRouting
from models.segmenters.hrnet_segmenter import HRNetSegmenter
from models.segmenters.upernet import UperNet
from models.vqa import TRAR

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class System:
    """Something to run on a GPU.

    Args:
        build: The module, in evaluation mode; its argument says whether it is tiny.
        inputs: What it takes, of the CPU; its argument likewise.
        waits: How often the host may wait for the device in a forward pass: once for a decision; None for any number.
        compiled: Whether shapes are static, so that `torch.compile` and a CUDA graph take it whole; otherwise why not.
        halved: Whether bfloat16 is close to float32; not where it changes which way is taken, nor where a fresh network
            makes as much of rounding its images alone.
    """

    build: Callable[[bool], nn.Module]
    inputs: Callable[[bool], Inputs]
    waits: int | None = 0
    compiled: bool | str = True
    halved: bool = True


class Sampling(nn.Module):
    """Deformable attention of queries to two maps."""

    def __init__(self, tiny: bool) -> None:
        super().__init__()
        self.sizes = [(6, 5), (3, 3)] if tiny else [(100, 134), (50, 67)]
        self.attention = DeformableAttention(16 if tiny else 256, 4 if tiny else 8, num_levels=2)
        nn.init.normal_(self.attention.sampling_offsets.weight, std=0.05)

    def forward(self, query: Tensor, references: Tensor, memory: Tensor) -> Tensor:
        """As `DeformableAttention`."""
        return self.attention(query, references, memory, Levels.of(self.sizes, query.device))

    def inputs(self) -> Inputs:
        """Queries at random places."""
        width, tokens = self.attention.value_proj.in_features, sum(height * wide for height, wide in self.sizes)
        references = torch.rand(2, tokens, 1, 2).expand(-1, -1, 2, -1)
        return torch.randn(2, tokens, width), references, torch.randn(2, tokens, width)


class PerSample(nn.Module):
    """A convolution with a kernel for each image."""

    def forward(self, images: Tensor, kernels: Tensor) -> Tensor:
        """As `per_sample_conv2d`."""
        return per_sample_conv2d(images, kernels, padding=1)


class Leaving(nn.Module):
    """A network whose images leave at its exits."""

    def __init__(self, network: nn.Module, thresholds: tuple[float, ...]) -> None:
        super().__init__()
        self.network, self.policy = network, Policy("max_prob", thresholds)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the exits taken."""
        assert isinstance(self.network, MultiExit)
        return run(self.network, images, self.policy)[0]


class Detecting(nn.Module):
    """What a set detector predicts, before anything is chosen by score."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes of the last layer."""
        found = self.network.predict(images, torch.zeros_like(images[:, 0], dtype=torch.bool), all_layers=False)
        return found.logits, found.boxes


class Pyramid(nn.Module):
    """The backbone and the neck of a pyramid detector."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> list[Tensor]:
        """The levels."""
        features = self.detector.backbone(images, torch.zeros_like(images[:, 0], dtype=torch.bool))
        return self.detector.neck([feature for feature, _ in features])


def images(side: int, tiny_side: int = 32, batch: int = 16) -> Callable[[bool], Inputs]:
    """Noise of this side in a batch, or of two small images."""
    return lambda tiny: (torch.randn(2, 3, tiny_side, tiny_side) if tiny else torch.randn(batch, 3, side, side),)


def _timm(name: str, **small: Any) -> Callable[[bool], nn.Module]:
    return lambda tiny: timm.create_model(name, num_classes=10, **(small if tiny else {}))


_RANET: dict[str, Any] = {"num_channels": 4, "growth_rate": 4, "step": 2, "head_width": 8}
_DVT: dict[str, Any] = {"image_size": 32, "grids": (2, 4, 8), "embed_dim": 12, "depth": 2, "num_heads": 2}
_SET: dict[str, Any] = {"num_queries": 6, "hidden_dim": 16, "num_heads": 4, "feedforward_dim": 16}
_SET |= {"encoder_layers": 1, "decoder_layers": 2}
_PLAIN = _SET | {"backbone": "plain_conv", "backbone_options": {"widths": [8, 8, 16, 16]}, "frozen_stages": 0}
_NARROW = _SET | {"backbone": "narrow_resnet", "backbone_options": {"layers": (1, 1, 1, 1), "width": 2}}
_NARROW |= {"norm_groups": 4}
_STAGES: list[Any] = [(1, [1], [4]), (1, [1] * 2, [4, 6]), (2, [1] * 3, [4, 6, 8]), (1, [1] * 4, [4, 6, 8, 10])]
_TRAR: dict[str, Any] = {"in_chans": 6, "dim": 8, "feedforward_dim": 6, "num_heads": 2, "num_layers": 2}
_TRAR |= {"word_dim": 4, "pool_dim": 3, "out_dim": 10}
_CONVNEXT = {"depths": (1, 2, 1, 1), "dims": (4, 8, 8, 8)}
_UPERNET: dict[str, Any] = {"hidden_dim": 8, "aux_dim": 6, "options": _CONVNEXT}
# Confidence lies between these for an untrained network, so that some images leave at each exit.
_LEAVE = (0.2, 0.22, 0.0)


def _drnet(tiny: bool) -> nn.Module:
    if not tiny:
        return DRNet(timm.create_model("resnet50"), ResolutionPredictor(3), (224, 168, 112))
    host = timm.create_model("resnet50", num_classes=10, layers=(1, 1, 1, 1), channels=(4, 8, 8, 8))
    return DRNet(host, ResolutionPredictor(3, (4, 6, 8, 8)), (64, 48, 32), 32)


def _set(detector: Callable[..., nn.Module], small: dict[str, Any]) -> Callable[[bool], nn.Module]:
    return lambda tiny: Detecting(detector(num_classes=10, **(small if tiny else {})))


def _dyfpn(tiny: bool) -> nn.Module:
    small = {"backbone": "resnet26", "options": {"channels": (8, 8, 16, 16)}, "fpn_chans": 32, "fc_dim": 8}
    return Pyramid(FasterRCNN(num_classes=10, neck=DyFPN, **(small if tiny else {"backbone": "resnet50"})))


def _questions(tiny: bool) -> Inputs:
    side, channels, batch = (4, 6, 2) if tiny else (16, 2048, 32)
    return torch.randint(1, 7, (batch, 5)), torch.randn(batch, side, side, channels)


CLOSED = "what closed gates skip depends on the images"
SYSTEMS: dict[str, System] = {
    "deformable sampling": System(Sampling, lambda tiny: Sampling(tiny).inputs()),
    "per-sample convolution": System(
        lambda tiny: PerSample(),
        lambda tiny: (
            (torch.randn(3, 4, 8, 8), torch.randn(3, 6, 4, 3, 3))
            if tiny
            else (torch.randn(32, 128, 28, 28), torch.randn(32, 128, 128, 3, 3))
        ),
    ),
    "early exit": System(
        lambda tiny: Leaving(DVT(num_classes=10, **_DVT) if tiny else DVT(num_classes=10), _LEAVE),
        images(224),
        waits=2,
        compiled="a batch becomes smaller",
        halved=False,
    ),
    "DVT": System(lambda tiny: DVT(num_classes=10, **(_DVT if tiny else {})), images(224)),
    "RANet": System(lambda tiny: RANet(10, **(_RANET if tiny else {})), images(32, batch=64)),
    "DRNet": System(_drnet, images(224, 64), waits=1, compiled="images have resolutions of their own", halved=False),
    "ConvNeXt": System(_timm("convnext_tiny", **_CONVNEXT), images(224)),
    "CondConv": System(_timm("condconv_mobilenetv2_100"), images(224), halved=False),
    "Dynamic Convolution": System(_timm("dy_resnet10"), images(224)),
    "DRConv": System(_timm("shufflenet_v2_x0_5_drconv"), images(224), waits=32, halved=False),
    "Container": System(
        _timm("container_v1_light", dims=(4, 8, 8, 8), depths=(1, 2, 1, 1), num_heads=2), images(224, 64)
    ),
    "DGE": System(
        _timm("deit_dge_s124_tiny_patch16_256", img_size=32, patch_size=8, embed_dim=6, depth=2, num_heads=2),
        images(256),
        waits=2,
        compiled="regions have grains of their own",
        halved=False,
    ),
    "DETR": System(_set(DETR, _PLAIN), images(640, 64, 2)),
    "SMCA": System(_set(SMCA, _PLAIN), images(640, 64, 2)),
    "Deformable DETR": System(_set(DeformableDETR, _NARROW), images(640, 64, 2)),
    "SOLQ": System(_set(SOLQ, _NARROW | {"num_coefficients": 12, "mask_size": 16}), images(640, 64, 2)),
    "DyFPN": System(_dyfpn, images(640, 64, 2), waits=1, compiled=CLOSED, halved=False),
    "HRNet": System(lambda tiny: HRNetSegmenter(10, _STAGES if tiny else "w48"), images(512, batch=4)),
    "ADP-C, tiles": System(
        lambda tiny: ADPC(10, _STAGES if tiny else "w48", pooled_dim=6 if tiny else 128),
        images(512, 64, 1),
        waits=3,
        compiled="tiles are as many as unsure pixels need",
        halved=False,
    ),
    "Dynamic Routing": System(
        lambda tiny: DynamicRouting(10, num_layers=3, width=4) if tiny else DynamicRouting(10),
        images(512, 64, 2),
        waits=None,
        compiled=CLOSED,
        halved=False,
    ),
    "UperNet": System(
        lambda tiny: UperNet(num_classes=10, **(_UPERNET if tiny else {})),
        images(512, 64, 4),
    ),
    "HRNet pose": System(lambda tiny: HRNetPose(4, _STAGES if tiny else "w32"), images(256, 64)),
    "TRAR": System(partial(lambda tiny: TRAR(num_answers=5, vocabulary_size=7, **(_TRAR if tiny else {}))), _questions),
}
