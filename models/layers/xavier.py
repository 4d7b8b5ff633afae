"""How transformers start."""

from torch import nn


def xavier_matrices(module: nn.Module) -> None:
    """Xavier-uniform values for every parameter of more than one dimension."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
