"""Dynamic Convolution at the published sizes: static hosts of timm with attention over kernels in every block.

Stem, last 1x1 convolution and classifier stay static, which is the one reading that the published parameter counts
allow. The hidden width of the attention is the paper's for the MobileNets and that of the public code for the ResNets,
as their counts were taken.

Reference: "Dynamic Convolution: Attention over Convolution Kernels", arXiv 1912.03458, section 5.1; ResNets of
kaijieshi7/Dynamic-convolution-Pytorch.
"""

from functools import partial
from typing import Any, Literal

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from models.layers.dynamic_conv import DynamicConv2d
from models.surgery import replace


def dynamic_conv(
    host: str,
    hidden_rule: Literal["plus_one", "paper"],
    num_kernels: int = 4,
    temperature: float = 30.0,
    **kwargs: Any,
) -> nn.Module:
    """A timm network with dynamic convolutions in all its blocks.

    Args:
        host: Name of the static network.
        hidden_rule, num_kernels, temperature: See `DynamicConv2d`.
        kwargs: Arguments of the host.
    """
    network = timm.create_model(host, **kwargs)
    options: dict[str, Any] = {"num_kernels": num_kernels, "hidden_rule": hidden_rule, "temperature": temperature}
    replace(network, partial(DynamicConv2d.like, **options))
    return network


__all__ = ["dynamic_conv"]
_MOBILENET = {"pool_size": (7, 7), "first_conv": "conv_stem", "classifier": "classifier"}
_RESNET = {"pool_size": (7, 7), "first_conv": "conv1", "classifier": "fc"}
default_cfgs = generate_default_cfgs(
    {
        "dy_mobilenetv2_035": _MOBILENET,
        "dy_mobilenetv2_050": _MOBILENET,
        "dy_mobilenetv2_075": _MOBILENET,
        "dy_mobilenetv2_100": _MOBILENET,
        "dy_mobilenetv3_small_100": _MOBILENET,
        "dy_mobilenetv3_large_100": _MOBILENET,
        "dy_resnet10": _RESNET,
        "dy_resnet18": _RESNET,
        "dy_resnet50": _RESNET,
    }
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any], host: str | None = None) -> nn.Module:
    rule: Literal["plus_one", "paper"] = "plus_one" if name.startswith("dy_resnet") else "paper"
    build = partial(dynamic_conv, host or name.removeprefix("dy_"), rule)
    # Features leave a ResNet by its stages, the mobile networks by blocks within one sequence.
    feature_cfg = {"out_indices": (0, 1, 2, 3, 4), "flatten_sequential": "resnet" not in name}
    return build_model_with_cfg(build, name, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def dy_mobilenetv2_035(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 0.35x."""
    return _create("dy_mobilenetv2_035", pretrained, kwargs)


@register_model
def dy_mobilenetv2_050(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 0.5x: 3.9 M parameters, 100 M multiply-adds."""
    return _create("dy_mobilenetv2_050", pretrained, kwargs)


@register_model
def dy_mobilenetv2_075(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 0.75x."""
    return _create("dy_mobilenetv2_075", pretrained, kwargs)


@register_model
def dy_mobilenetv2_100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 1x: 11.1 M parameters, 310 M multiply-adds."""
    return _create("dy_mobilenetv2_100", pretrained, kwargs)


@register_model
def dy_mobilenetv3_small_100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Small."""
    return _create("dy_mobilenetv3_small_100", pretrained, kwargs)


@register_model
def dy_mobilenetv3_large_100(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV3-Large."""
    return _create("dy_mobilenetv3_large_100", pretrained, kwargs)


@register_model
def dy_resnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet of one basic block a stage: 20.2 M parameters, 909 M multiply-adds."""
    return _create("dy_resnet10", pretrained, {"layers": [1, 1, 1, 1], **kwargs}, host="resnet18")


@register_model
def dy_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18: 45.5 M parameters, 1,859 M multiply-adds."""
    return _create("dy_resnet18", pretrained, kwargs)


@register_model
def dy_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50: 100.9 M parameters, 4,188 M multiply-adds."""
    return _create("dy_resnet50", pretrained, kwargs)
