"""What timm is told of networks of ours."""

from collections.abc import Iterable, Mapping

from timm.models import DefaultCfg, generate_default_cfgs, get_arch_pretrained_cfgs


def default_cfgs_of(architectures: Mapping[str, str]) -> dict[str, DefaultCfg]:
    """The `default_cfgs` of a module whose networks take timm's weights, by the tags that timm gives them.

    Args:
        architectures: Name of each network, and timm's name of the one whose weights fit.
    """
    return generate_default_cfgs(
        {
            name.replace(theirs, ours, 1): cfg
            for ours, theirs in architectures.items()
            for name, cfg in get_arch_pretrained_cfgs(theirs).items()
        }
    )


def imagenet_cfgs(names: Iterable[str], size: int, first_conv: str = "patch_embed.proj") -> dict[str, DefaultCfg]:
    """The `default_cfgs` of transformers that are trained on ImageNet as DeiT is, and take images of any size.

    Args:
        names: Of the networks.
        size: Of the images that they are trained with, in pixels.
        first_conv: Name of the layer that takes the image.
    """
    cfg = {
        "input_size": (3, size, size),
        "fixed_input_size": False,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": "head",
        "num_classes": 1000,
        "pool_size": None,
    }
    return generate_default_cfgs({name: dict(cfg) for name in names})
