"""Tiny networks of every system with an official layout, in each of the layout's variants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

import models.backbones  # noqa: F401  registers our networks with timm
from models.classifiers.cifar_resnet import CIFARResNet
from models.classifiers.densenet import CIFARDenseNet
from models.classifiers.drnet import DRNet, ResolutionPredictor
from models.classifiers.dvt import DVT
from models.classifiers.preact_resnet import PreActResNet
from models.classifiers.ranet import RANet
from models.classifiers.shake_shake import ShakeShake
from models.classifiers.vgg import VGG, ImageNetVGG
from models.classifiers.wide_resnet import WideResNet
from models.detectors.deformable_detr import DeformableDETR
from models.detectors.detr import DETR
from models.detectors.detr_segmentation import DETRSegmentation
from models.detectors.fcos import FCOS
from models.detectors.rcnn import CascadeMaskRCNN, FasterRCNN, MaskRCNN
from models.detectors.retinanet import RetinaNet
from models.detectors.smca import SMCA
from models.detectors.solq import SOLQ
from models.necks import DyFPN, InceptionFPN
from models.pose.hrnet_pose import HRNetPose
from models.segmenters.adpc import ADPC
from models.segmenters.dynamic_routing import DynamicRouting
from models.segmenters.hrnet_segmenter import HRNetSegmenter
from models.segmenters.upernet import UperNet
from models.self_supervised import BYOL, DINO, MoCo
from models.supernet import TransformerSpace, autoformer_supernet
from models.vqa import TRAR

_CONVNEXT = {"depths": (1, 2, 1, 1), "dims": (4, 8, 8, 8)}
_TRANSFORMER: dict[str, Any] = {
    "num_classes": 5,
    "num_queries": 6,
    "hidden_dim": 16,
    "num_heads": 4,
    "feedforward_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
}
_DENSE = _TRANSFORMER | {"backbone": "plain_conv", "backbone_options": {"widths": [8, 8, 16, 16]}, "frozen_stages": 0}
_DEFORMABLE = _TRANSFORMER | {
    "backbone": "narrow_resnet",
    "backbone_options": {"layers": (1, 1, 1, 1), "width": 2},
    "norm_groups": 4,
}
_SOLQ = _DEFORMABLE | {"num_coefficients": 12, "mask_size": 16, "vector_hidden_dim": 8}
_SWIN = {
    "backbone": "swin_tiny_dense",
    "backbone_options": {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 3},
    "frozen_stages": 0,
}
_CONTAINER = {"dims": (4, 8, 8, 8), "depths": (1, 2, 1, 1), "num_heads": 2}
_DVT = {"num_classes": 5, "image_size": 32, "grids": (2, 4, 8), "embed_dim": 12, "depth": 2, "num_heads": 2}
_TRAR: dict[str, Any] = {
    "num_answers": 5,
    "vocabulary_size": 7,
    "in_chans": 6,
    "dim": 8,
    "feedforward_dim": 6,
    "num_heads": 2,
    "num_layers": 2,
    "word_dim": 4,
    "pool_dim": 3,
    "out_dim": 10,
}
_SPACE = TransformerSpace([1, 2], [6, 8], [1, 2], [2, 3])
_SUPERNET: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 8,
    "num_classes": 3,
    "head_dim": 8,
    "max_relative_position": 2,
}
_DEIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 6, "depth": 2, "num_heads": 2, "num_classes": 3}
_PVT = {"img_size": 64, "embed_dims": (4, 4, 6, 6), "num_heads": (1, 1, 2, 2), "depths": (1, 1, 2, 1), "num_classes": 3}
_RANET: dict[str, Any] = {"num_channels": 4, "growth_rate": 4, "step": 2, "head_width": 8}
STAGES: list[Any] = [
    (1, [1], [4]),
    (1, [1] * 2, [4, 6]),
    (2, [1] * 3, [4, 6, 8]),
    (1, [1] * 4, [4, 6, 8, 10]),
]
_ADPC: dict[str, Any] = {"num_classes": 5, "stages": STAGES, "pooled_dim": 6, "init_std": None}
_RESNET_DETECTOR: dict[str, Any] = {
    "num_classes": 5,
    "backbone": "resnet26",
    "options": {"channels": (8, 8, 16, 16)},
    "fpn_chans": 32,
}
_CONVNEXT_DETECTOR = _RESNET_DETECTOR | {
    "backbone": "convnext_tiny",
    "options": _CONVNEXT,
    "output_norm": True,
    "fc_dim": 8,
    "convention": "mmdet",
}


def _drnet() -> nn.Module:
    options = {"layers": (1, 1, 1, 1), "channels": (4, 8, 8, 8)}
    host = timm.create_model("resnet50", num_classes=5, **options)
    return DRNet(host, ResolutionPredictor(3, (4, 6, 8, 8)), (64, 48, 32), 32, shortcut_bn="first")


class _Trunk(nn.Module):
    """What an ImageNet HRNet is converted to: the trunk of a network, alone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = HRNetSegmenter(5, STAGES).backbone


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **options)


def _resnet() -> nn.Module:
    return timm.create_model("narrow_resnet", layers=(1, 1, 1, 1), width=2, num_classes=0)


def _dino(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        vit = {"img_size": 16, "patch_size": 8, "embed_dim": 6, "depth": 2, "num_heads": 2, "num_classes": 0}
        head = {"out_dim": 5, "hidden_dim": 4, "bottleneck_dim": 3}
        return DINO(timm.create_model("vit_tiny_patch16_dino", **vit), head | options)

    return build


BUILD: dict[str, Callable[[], nn.Module]] = {
    "adpc/early_exits": lambda: ADPC(**_ADPC | {"pooled_dim": None, "threshold": None}),
    "adpc/redesigned_heads": lambda: ADPC(**_ADPC, threshold=None),
    "adpc/confidence": lambda: ADPC(**_ADPC | {"pooled_dim": None}),
    "adpc/all": lambda: ADPC(**_ADPC),
    "adpc/equal_widths": lambda: ADPC(**_ADPC | {"stages": [(1, [2], [16]), *STAGES[1:]]}),
    "autoformer": lambda: autoformer_supernet(_SPACE, **_SUPERNET),
    "autoformer/wide": lambda: autoformer_supernet(_SPACE, embed_dim=20, **_SUPERNET),
    "byol": lambda: BYOL(_resnet(), hidden_dim=4, out_dim=3),
    "condconv": _timm("condconv_mobilenetv2_100", num_classes=4),
    "container": _timm("container_v1_light", num_classes=3, **_CONTAINER),
    "container/mixed": _timm("container", num_classes=3, **_CONTAINER),
    "container/local": _timm("container_light", num_classes=3, dynamic=(False,) * 4, **_CONTAINER),
    "container/without_head": _timm("container_v1_light", num_classes=0, **_CONTAINER),
    "convnext": _timm("convnext_tiny", num_classes=3, **_CONVNEXT),
    "convnext/dense": _timm("convnext_tiny_dense", features_only=True, num_classes=0, out_indices=(1, 2), **_CONVNEXT),
    "convnext/without_gamma": _timm("convnext_base", num_classes=3, ls_init_value=None, **_CONVNEXT),
    "convnext/without_head": _timm("convnext_large", num_classes=0, **_CONVNEXT),
    "convnext/isotropic": _timm("convnext_isotropic_small", depth=2, dim=8, num_classes=3),
    "convnext/isotropic_gamma": _timm("convnext_isotropic_large", depth=2, dim=8, num_classes=3),
    "deformable_detr": lambda: DeformableDETR(**_DEFORMABLE),
    "deformable_detr/single_scale": lambda: DeformableDETR(**_DEFORMABLE, num_levels=1),
    "deformable_detr/refine": lambda: DeformableDETR(**_DEFORMABLE, refine=True),
    "deformable_detr/two_stage": lambda: DeformableDETR(**_DEFORMABLE, refine=True, two_stage=True),
    "detectron2": lambda: RetinaNet(**_RESNET_DETECTOR, convention="detectron2"),
    "detr": lambda: DETR(**_DENSE),
    "detr/pre_norm": lambda: DETR(**_DENSE | {"encoder_layers": 2}, position_encoding="learned", pre_norm=True),
    "detr/masks": lambda: DETRSegmentation(DETR(**_DENSE | {"hidden_dim": 128, "num_heads": 8}, num_levels=4)),
    "dge/deit": _timm("deit_dge_s124_tiny_patch16_256", **_DEIT),
    "dge/no_class_token": _timm("deit_dge_s124_small_patch16_256", **_DEIT, class_token=False, global_pool="avg"),
    "dge/pvt": _timm("pvt_dge_s124_tiny_256", **_PVT),
    "dge/plain_pvt": _timm("pvt_small_256", **_PVT),
    "dge/dpvt": _timm("dpvt_tiny_256", **_PVT),
    "dino": _dino(),
    "dino/norms": _dino(norm=True),
    "dino/one_layer": _dino(num_layers=1),
    "drconv": _timm("shufflenet_v2_x0_5_drconv", num_classes=3),
    "drnet": _drnet,
    "dvt/deit": lambda: DVT(**_DVT),
    "dvt/t2t": lambda: DVT(**_DVT, host="t2t"),
    "dvt/features": lambda: DVT(**_DVT, relation_reuse=False),
    "dvt/relations": lambda: DVT(**_DVT, feature_reuse=False),
    "dvt/no_reuse": lambda: DVT(**_DVT, host="t2t", feature_reuse=False, relation_reuse=False),
    "dyfpn": lambda: FasterRCNN(**_RESNET_DETECTOR, neck=DyFPN, fc_dim=8),
    "dyfpn/one_branch": lambda: FasterRCNN(**_RESNET_DETECTOR, neck=partial(DyFPN, structure="A"), fc_dim=8),
    "dyfpn/conv": lambda: FasterRCNN(**_RESNET_DETECTOR, neck=partial(DyFPN, gate="conv"), fc_dim=8),
    "dyfpn/lstm": lambda: FasterRCNN(**_RESNET_DETECTOR, neck=partial(DyFPN, gate="lstm_up"), fc_dim=8),
    "dyfpn/static": lambda: FasterRCNN(**_RESNET_DETECTOR, neck=InceptionFPN, fc_dim=8),
    "dynamic_conv": _timm("dy_resnet10", num_classes=4),
    "dynamic_routing": lambda: DynamicRouting(5, num_layers=5, width=4),
    "dynamic_routing/all": lambda: DynamicRouting(5, num_layers=3, width=4, route="all"),
    "fixmatch": lambda: WideResNet(10, 2, 5, base_width=4, dead_preact=True),
    "fixmatch/equal_widths": lambda: WideResNet(16, 1, 5, base_width=4, dead_preact=True),
    "hrnet/segmenter": lambda: HRNetSegmenter(5, STAGES),
    "hrnet/pose": lambda: HRNetPose(4, STAGES),
    "hrnet_imagenet": _Trunk,
    "mean_teacher": lambda: ShakeShake(14, 4, 5, two_heads=True),
    "mean_teacher/equal_widths": lambda: ShakeShake(8, 16, 5, two_heads=True),
    "mmdet": lambda: MaskRCNN(**_CONVNEXT_DETECTOR),
    "mmdet/cascade": lambda: CascadeMaskRCNN(**_CONVNEXT_DETECTOR),
    "moco": lambda: MoCo(_resnet(), out_dim=3, queue_size=4),
    "moco/v1": lambda: MoCo(_resnet(), out_dim=3, hidden_dim=0, queue_size=4),
    "pruned_regression": _timm(
        "resnet50_regression_2x",
        num_classes=3,
        layers=(1, 2, 1, 1),
        channels=(2, 4, 4, 4),
        inner=[(5, 3, 2), (6, 2, 3), (7, 2, 2), (8, 2, 2), (9, 2, 3)],
    ),
    "pruned_resnet": lambda: CIFARResNet(14, [2, 3, 4, 5, 6, 7], 5, stage_widths=(4, 6, 8)),
    "pruned_vgg/hidden": lambda: VGG([2, 3, "M", 4, "M", 5], 5, hidden=6),
    "pruned_vgg/linear": lambda: VGG([2, 3, "M", 4, "M", 5], 10, bias=True),
    "pruned_vgg/imagenet": lambda: ImageNetVGG([2, 3, "M", 4, "M"], 5, (6, 7)),
    "pruned_vgg/imagenet_norms": lambda: ImageNetVGG([2, "M", 4, "M"], 5, (6, 7), norm=True, hidden_norm=True),
    "pruned_vgg/imagenet_average": lambda: ImageNetVGG([2, 3, "M", 4], 5, ()),
    "ranet": lambda: RANet(**_RANET),
    "ranet/three_scales": lambda: RANet(
        **_RANET | {"growth_rate": 8},
        growth_factors=(4, 2, 1, 1),
        bottleneck_factors=(4, 2, 1, 1),
        scales=(1, 2, 3, 3),
    ),
    "ranet/imagenet": lambda: RANet(**_RANET | {"head_width": None}, stem="imagenet"),
    "slimmed/preact": lambda: PreActResNet(20, [9, 3, 4, 20, 5, 6, 64, 7, 8, 70, 9, 9, 1, 2, 3, 4, 5, 6, 99], 5),
    "slimmed/preact_whole": lambda: PreActResNet(11, num_classes=5, selection=False),
    "slimmed/dense": lambda: CIFARDenseNet(10, 2, [3, 4, 5, 6, 7, 8, 9, 10, 11], 5),
    "slimmed/dense_whole": lambda: CIFARDenseNet(7, 2, num_classes=5, selection=False, compression=2),
    "smca/type1": lambda: SMCA(**_DENSE, gaussian_scale="type1"),
    "smca/type3": lambda: SMCA(**_DENSE | {"decoder_layers": 3}, gaussian_scale="type3"),
    "solq": lambda: SOLQ(**_SOLQ),
    "solq/swin": lambda: SOLQ(**_SOLQ | _SWIN),
    "spatial_ensemble": lambda: BYOL(_resnet(), hidden_dim=4, out_dim=3, last_bias=True),
    "torchvision_detectors/faster_rcnn": lambda: FasterRCNN(**_RESNET_DETECTOR, convention="torchvision", fc_dim=8),
    "torchvision_detectors/mask_rcnn": lambda: MaskRCNN(**_RESNET_DETECTOR, convention="torchvision", fc_dim=8),
    "torchvision_detectors/retinanet": lambda: RetinaNet(**_RESNET_DETECTOR, convention="torchvision"),
    "torchvision_detectors/fcos": lambda: FCOS(**_RESNET_DETECTOR, convention="torchvision"),
    "trar": lambda: TRAR(**_TRAR),
    "trar/attention": lambda: TRAR(**_TRAR, routing="hard", pooling="attention", glimpses=2),
    "trar/fc": lambda: TRAR(**_TRAR, orders=(0, 1, 3), pooling="fc"),
    "trar/boxes": lambda: TRAR(**_TRAR, box_dim=3),
    "trar/plain": lambda: TRAR(**_TRAR, orders=(0,), routing="fixed"),
    "upernet": lambda: UperNet(num_classes=5, hidden_dim=8, aux_dim=6, options=_CONVNEXT),
    "upernet/one_pool": lambda: UperNet(num_classes=5, hidden_dim=8, aux_dim=6, options=_CONVNEXT, pool_sizes=(2,)),
}


def weights(name: str) -> dict[str, Tensor]:
    """Weights of one of these networks, in which no two tensors are equal but those that are constant."""
    generator = torch.Generator().manual_seed(0)
    constants = ("num_batches_tracked", "positives", "offsets", "indexes", "splits")
    state = {
        key: value.clone() if key.endswith(constants) else torch.randn(value.shape, generator=generator)
        for key, value in BUILD[name]().state_dict().items()
    }
    # The only temperature that official layouts know.
    return {key: torch.tensor(1.0) if key.endswith("temperature") else value for key, value in state.items()}
