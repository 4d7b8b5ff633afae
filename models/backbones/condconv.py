"""CondConv at the published sizes: static hosts of timm with conditionally parameterised blocks and classifiers.

The EfficientNets are timm's `efficientnet_cc_*` in layout and output, on our layer. The converted official weights,
timm's `tf_efficientnet_cc_*`, load with `bn_eps=1e-3, pad_type="same"`.

Reference: "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", arXiv 1904.04971, section 4.1.
"""

from functools import partial
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from models.layers.cond_conv import CondConv2d
from models.surgery import SQUEEZE_EXCITE, replace


def condconv(host: str, num_experts: int, selection: dict[str, Any], **kwargs: Any) -> nn.Module:
    """A timm network with CondConv layers that share a routing by block.

    The host's `reset_classifier` puts a static classifier in the place of a dynamic one.

    Args:
        host: Name of the static network.
        num_experts: n.
        selection: What becomes dynamic, as arguments of `models.surgery.replace`.
        kwargs: Arguments of the host.
    """
    network = timm.create_model(host, **kwargs)
    # A network without classes has no classifier to replace.
    classifier = selection.get("classifier", False) and kwargs.get("num_classes") != 0
    make = partial(CondConv2d.like, num_experts=num_experts, routing="block")
    replace(network, make, **(selection | {"classifier": classifier}))
    return network


_LAST_STAGES = {"stages": [-3, -2, -1]}
_RESNET_SHORTCUTS = (*SQUEEZE_EXCITE, "*.downsample.*")

__all__ = ["condconv"]
_ENTRY = {"pool_size": (7, 7), "first_conv": "conv_stem", "classifier": "classifier"}
# A dynamic classifier is a convolution over pooled features (see `PointwiseClassifier`).
_DYNAMIC = _ENTRY | {"classifier": "classifier.layer"}
_HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
default_cfgs = generate_default_cfgs(
    {
        "condconv_efficientnet_b0_4e": _ENTRY | _HALVES,
        "condconv_efficientnet_b0_8e": _ENTRY | _HALVES,
        "condconv_efficientnet_b1_8e": _ENTRY
        | _HALVES
        | {"input_size": (3, 240, 240), "pool_size": (8, 8), "crop_pct": 0.882},
        "condconv_mobilenetv1_100": _DYNAMIC,
        "condconv_mobilenetv2_100": _DYNAMIC,
        "condconv_resnet50": _ENTRY | {"first_conv": "conv1", "classifier": "fc.layer"},
    }
)


def _create(
    name: str, host: str, num_experts: int, selection: dict[str, Any], pretrained: bool, kwargs: dict[str, Any]
) -> nn.Module:
    build = partial(condconv, host, selection=selection)
    kwargs = {"num_experts": num_experts, **kwargs}
    # Features leave a ResNet by its stages, the mobile networks by blocks within one sequence.
    feature_cfg = {"out_indices": (0, 1, 2, 3, 4), "flatten_sequential": "resnet" not in name}
    return build_model_with_cfg(build, name, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def condconv_efficientnet_b0_4e(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet-B0, 4 experts in the last three stages: 13.3 M parameters, 397 M multiply-adds."""
    return _create("condconv_efficientnet_b0_4e", "efficientnet_b0", 4, _LAST_STAGES, pretrained, kwargs)


@register_model
def condconv_efficientnet_b0_8e(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet-B0, 8 experts in the last three stages: 24.0 M parameters, 407 M multiply-adds."""
    return _create("condconv_efficientnet_b0_8e", "efficientnet_b0", 8, _LAST_STAGES, pretrained, kwargs)


@register_model
def condconv_efficientnet_b1_8e(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet of depth 1.1, 8 experts in the last three stages: 39.7 M parameters, 723 M multiply-adds at 240."""
    return _create("condconv_efficientnet_b1_8e", "efficientnet_b1", 8, _LAST_STAGES, pretrained, kwargs)


@register_model
def condconv_mobilenetv1_100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV1, 8 experts from the seventh separable block on and in the classifier."""
    selection = {"last_blocks": 7, "classifier": True}
    return _create("condconv_mobilenetv1_100", "mobilenetv1_100", 8, selection, pretrained, kwargs)


@register_model
def condconv_mobilenetv2_100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2, 8 experts in the last six blocks and the classifier: 22.9 M parameters, 323 M multiply-adds."""
    selection = {"last_blocks": 6, "classifier": True}
    return _create("condconv_mobilenetv2_100", "mobilenetv2_100", 8, selection, pretrained, kwargs)


@register_model
def condconv_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50, 8 experts in the last three blocks, shortcuts apart, and in the classifier."""
    selection = {"last_blocks": 3, "exclude": _RESNET_SHORTCUTS, "classifier": True}
    return _create("condconv_resnet50", "resnet50", 8, selection, pretrained, kwargs)
