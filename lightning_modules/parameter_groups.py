"""Parameters sorted into optimiser groups: who decays, and how fast each layer learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal, TypeAlias

from timm.models import group_parameters
from torch import Tensor, nn

from lightning_modules.convnext_layers import layer_wise_id, stage_wise_id
from models.mistakes import Mistake

# What decays beside weights of more than one dimension.
DecayAll: TypeAlias = bool | Literal["but_norms"]


@dataclass
class LayerDecay:
    """Learning rates that shrink from the head towards the stem: `lr * decay ** (last layer - layer)`.

    Args:
        decay: Factor from one layer to the one below it.
        rule: How layers are counted. `timm`: every block of a timm network is one; `convnext_layer_wise` (published
            fine-tuning and detection) and `convnext_stage_wise` (published segmentation): see
            `lightning_modules.convnext_layers`.
        num_layers: Layers of the ConvNeXt rules: 12, or 6 for backbones with 9 blocks in the third stage.
        prefix: Where in the network the backbone is, such as `backbone`; everything outside counts as the head.
    """

    decay: float
    rule: Literal["timm", "convnext_layer_wise", "convnext_stage_wise"] = "timm"
    num_layers: int = 12
    prefix: str = ""

    def layer_ids(self, network: nn.Module) -> tuple[dict[str, int], int]:
        """Layer of every parameter by name, and the layer of the head.

        Raises:
            Mistake: The network has no backbone there, or timm cannot tell its layers.
        """
        try:
            backbone = network.get_submodule(self.prefix)
        except AttributeError as error:
            raise Mistake(f"layer decay: the network has no module {self.prefix!r}") from error
        if self.rule == "timm":
            group_matcher = getattr(backbone, "group_matcher", None)
            if not callable(group_matcher):
                raise Mistake(
                    f"layer decay: {type(backbone).__name__} has no group_matcher, so timm cannot tell its layers; "
                    "point prefix at a timm backbone"
                )
            inner: dict[str, int] = group_parameters(backbone, group_matcher(coarse=False), reverse=True)
            head = max(inner.values()) + bool(self.prefix)
        else:
            layer_id = layer_wise_id if self.rule == "convnext_layer_wise" else stage_wise_id
            inner = {name: layer_id(name, self.num_layers) for name, _ in backbone.named_parameters()}
            head = self.num_layers + 1
        start = f"{self.prefix}." if self.prefix else ""
        ids = {
            name: inner.get(name.removeprefix(start), head) if name.startswith(start) else head
            for name, _ in network.named_parameters()
        }
        return ids, head


def parameter_groups(
    network: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: LayerDecay | None = None,
    lr_multipliers: Mapping[str, float] | None = None,
    decay_all: DecayAll = False,
) -> list[dict[str, Any]]:
    """Optimiser groups of a network, in the order in which their first parameters appear.

    One-dimensional parameters (norms, LayerScale), biases and what a module names in `no_weight_decay()` do not decay;
    everything else does, depthwise kernels included. Frozen parameters are left out.

    Args:
        network: Its trainable parameters are grouped.
        lr: Learning rate of the head.
        weight_decay: Weight decay of the parameters that have one.
        layer_decay: Learning rates by layer; None for one rate.
        lr_multipliers: Factors of the learning rate by a text that parameter names contain; the first that fits counts.
        decay_all: Whether everything decays, norms and biases too. `but_norms`: everything but norms, which are modules
            whose `weight` is one-dimensional.

    Returns:
        Dicts of `params`, `param_names`, `name`, `weight_decay`, `lr_scale` and `lr` (= lr * lr_scale).

    Raises:
        Mistake: Nothing to train, an unknown `decay_all`, layer decay that does not fit the network, or a multiplier
            that is not positive or fits no parameter.
    """
    if decay_all not in (True, False, "but_norms"):
        raise Mistake(f"decay_all must be true, false or but_norms, not {decay_all!r}")
    multipliers = dict(lr_multipliers or {})
    _check(multipliers, [name for name, _ in network.named_parameters()])
    ids, head = layer_decay.layer_ids(network) if layer_decay else ({}, 0)
    exempt = _no_weight_decay(network)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if decay_all == "but_norms":
            decays = not _of_norm(network, name)
        else:
            is_bias = name.split(".")[-1] == "bias"
            excused = parameter.ndim <= 1 or is_bias or any(fnmatch(name, pattern) for pattern in exempt)
            decays = decay_all or not excused
        group_name = "decay" if decays else "no_decay"
        scale = 1.0
        if layer_decay:
            group_name = f"layer_{ids[name]}_{group_name}"
            scale = layer_decay.decay ** (head - ids[name])
        if text := next((text for text in multipliers if text in name), None):
            group_name = f"{text}_{group_name}"
            scale *= multipliers[text]
        group = groups.setdefault(
            group_name,
            {
                "params": [],
                "param_names": [],
                "name": group_name,
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": scale,
                "lr": lr * scale,
            },
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    if not groups:
        raise Mistake("the network has no trainable parameter")
    return list(groups.values())


def _check(multipliers: dict[str, float], names: list[str]) -> None:
    for text, factor in multipliers.items():
        if not factor > 0:
            raise Mistake(f"lr_multipliers: {text!r} has the factor {factor:g}, which must be above 0")
        if not any(text in name for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise Mistake(f"lr_multipliers: no parameter's name contains {text!r}; they begin with {', '.join(parts)}")


def describe(groups: Sequence[dict[str, Any]]) -> str:
    """Table of groups for people: name, tensors, parameters, lr scale, lr, weight decay, first parameter."""
    header = ("group", "tensors", "parameters", "lr scale", "lr", "weight decay", "from")
    rows = [header]
    for group in groups:
        rows.append(
            (
                group["name"],
                str(len(group["params"])),
                f"{sum(parameter.numel() for parameter in group['params']):,}",
                f"{group['lr_scale']:.6f}",
                f"{group['lr']:.3e}",
                f"{group['weight_decay']:g}",
                group["param_names"][0],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _of_norm(network: nn.Module, name: str) -> bool:
    owner, _, own_name = name.rpartition(".")
    weight = getattr(network.get_submodule(owner), "weight", None)
    return own_name in ("weight", "bias") and isinstance(weight, Tensor) and weight.ndim == 1


def _no_weight_decay(network: nn.Module) -> set[str]:
    # A backbone inside a detector or a student-teacher pair keeps its say, so every module is asked.
    patterns = set()
    for module_name, module in network.named_modules():
        if callable(names := getattr(module, "no_weight_decay", None)):
            patterns |= {f"{module_name}.{name}".lstrip(".") for name in names()}
    return patterns
