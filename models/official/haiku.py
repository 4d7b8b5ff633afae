"""Trees of Haiku, JAX's library of networks, as flat names: parameters and state of a student and its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# In the order in which BYOL's state of a training holds them; what is behind them is the optimiser's.
TREES = ("online_params", "target_params", "online_state", "target_state")
# By which the network of images is found, whatever its own name is.
_FIRST_LAYER = "/~/initial_conv"


def flat(checkpoint: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Weights by `<tree>.<module>.<tensor>`, the network of images being called `encoder`.

    Args:
        checkpoint: What a training of BYOL's has saved: its state, a tuple or by name, perhaps in an entry of its own.

    Returns:
        The weights; None where there are no such trees.
    """
    trees = checkpoint.get("experiment_state", checkpoint)
    if isinstance(trees, tuple):
        trees = dict(zip(TREES, trees, strict=False))
    if not isinstance(trees, Mapping) or not all(isinstance(trees.get(tree), Mapping) for tree in TREES):
        return None
    roots = [str(path).removesuffix(_FIRST_LAYER) for path in trees[TREES[0]] if str(path).endswith(_FIRST_LAYER)]
    found = {}
    for tree in TREES:
        for path, module in trees[tree].items():
            name = str(path)
            for root in roots:
                name = f"encoder{name.removeprefix(root)}" if name.startswith(f"{root}/") else name
            name = name.replace("/~/", ".").replace("/", ".")
            for leaf, value in module.items() if isinstance(module, Mapping) else ():
                found[f"{tree}.{name}.{leaf}"] = value
    return found
