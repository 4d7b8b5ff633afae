"""How convolutions start that ReLUs follow."""

from typing import Literal

from torch import nn


def he_normal(network: nn.Module, gamma: float = 1.0, fan: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Normal values of variance 2 / fan for every convolution, `gamma` for the scales of norms on maps, 0 for biases.

    Reference: "Delving Deep into Rectifiers", arXiv 1502.01852.

    Args:
        network: Network; its linear layers stay as they are.
        gamma: Where the scale of every `BatchNorm2d` starts.
        fan: Whether a variance follows from what an output value reads or from what an input value is read by.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, gamma)
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
