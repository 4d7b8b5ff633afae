"""Names of ours for networks whose weights are timm's."""

from collections.abc import Mapping

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
