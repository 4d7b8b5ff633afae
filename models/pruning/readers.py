"""What the layers that read a group's channels make of each of them, on real images: for ThiNet and regression.

Both methods choose channels so that the next layer's output can be rebuilt, and then rebuild it. A group may be read by
several layers, as in a residual network: their samples are put one below the other, each relative to its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.compute import inference
from models.mistakes import Mistake
from models.pruning.groups import ChannelGroup, Slot
from models.pruning.plan import Plan, kept_index
from models.pruning.reconstruction import lasso_order, least_squares_weight, thinet_order, thinet_scales
from models.pruning.scores import Score

Method = Literal["thinet", "lasso"]
METHODS: tuple[Method, ...] = ("thinet", "lasso")
# Positions of a layer's output that are looked at, and channels of it at each.
POSITIONS, OUTPUTS = 400, 4


class Readers:
    """Layers that read channels, with patches of their inputs at random positions.

    Args:
        network: The unpruned network.
        images: Batches of what it takes.
        groups: Of its channels.
        seed: Of the positions.
    """

    def __init__(
        self, network: nn.Module, images: Iterable[Tensor], groups: Sequence[ChannelGroup], seed: int = 0
    ) -> None:
        self.network = network
        self.generator = torch.Generator().manual_seed(seed)
        names = {slot.layer for group in groups for slot in group.slots if slot.side == "in"}
        layers = {name: network.get_submodule(name) for name in names}
        self.layers = {name: layer for name, layer in layers.items() if _is_plain(layer)}
        # Patches [positions, in, kernel] of each layer.
        self.patches: dict[str, Tensor] = {}
        batches = list(images)
        for batch in batches:
            self._look(batch, -(-POSITIONS // len(batches)))

    def score(self, method: Method) -> Score:
        """The order in which a method takes channels away, as a score: what goes first has 0.

        Args:
            method: `thinet` or `lasso`.
        """
        order_of = thinet_order if method == "thinet" else lasso_order

        def score(network: nn.Module, group: ChannelGroup) -> Tensor:
            if group.repeats > 1:
                raise Mistake(
                    f"layer {group.name}: {method} does not know grouped convolutions; choose another criterion"
                )
            samples = [self._contributions(slot, group.width) for slot in group.slots if self._reads(slot)]
            if not samples:
                raise Mistake(
                    f"layer {group.name} is read by no layer that {method} could rebuild: choose another criterion"
                )
            scores = torch.empty(group.width)
            scores[order_of(torch.cat(samples))] = torch.arange(group.width, dtype=torch.float32)
            return scores

        return score

    @torch.no_grad()
    def rebuild(self, small: nn.Module, plan: Plan, method: Method) -> None:
        """Brings the layers of a pruned network close to their old outputs, in place.

        Args:
            small: The network without the channels, with the weights of those that are left.
            plan: By which it was made.
            method: `thinet` scales what each kept channel adds; `lasso` finds all weights anew. Layers that have fewer
                samples than weights for an output are left as they are.
        """
        for name, layer in self.layers.items():
            sides = plan.layers.get(name, {})
            if "in" not in sides:
                continue
            kept, patches, weight = kept_index(sides["in"]), self.patches[name], _kernels(layer)
            left = patches[:, kept]
            if method == "thinet":
                sums = self._added(name)
                rebuilt = weight[:, kept] * thinet_scales(sums, kept)[:, None]
            elif len(left) >= left[0].numel():
                outputs = patches.flatten(1) @ weight.flatten(1).T
                rebuilt = least_squares_weight(left.flatten(1), outputs).view(len(weight), *left.shape[1:])
            else:
                continue
            if "out" in sides:
                rebuilt = rebuilt[kept_index(sides["out"])]
            target = small.get_submodule(name).get_parameter("weight")
            target.copy_(rebuilt.view_as(target))

    def _reads(self, slot: Slot) -> bool:
        return slot.side == "in" and slot.layer in self.layers

    def _look(self, images: Tensor, positions: int) -> None:
        def keep(name: str) -> Any:
            def hook(layer: Any, inputs: tuple[Tensor, ...]) -> None:
                found = self._patches(layer, inputs[0], positions)
                self.patches[name] = torch.cat([self.patches[name], found]) if name in self.patches else found

            return hook

        hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in self.layers.items()]
        try:
            with inference(self.network):
                self.network(images)
        finally:
            for hook in hooks:
                hook.remove()

    def _patches(self, layer: Any, x: Tensor, positions: int) -> Tensor:
        if isinstance(layer, nn.Linear):
            rows = x.flatten(0, -2)[..., None]
            return rows[torch.randint(len(rows), (positions,), generator=self.generator)].cpu()
        columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        columns = columns.transpose(1, 2).flatten(0, 1)
        chosen = columns[torch.randint(len(columns), (positions,), generator=self.generator)]
        return chosen.unflatten(1, (x.shape[1], -1)).cpu()

    def _added(self, name: str) -> Tensor:
        """What each input channel of a layer adds to some of its outputs [positions x outputs, in]."""
        patches, weight = self.patches[name], _kernels(self.layers[name])
        chosen = torch.randint(len(weight), (len(patches), OUTPUTS), generator=self.generator)
        return torch.einsum("sck,sock->soc", patches, weight[chosen]).flatten(0, 1)

    def _contributions(self, slot: Slot, width: int) -> Tensor:
        """What each channel of a group adds, relative to how far the whole sum varies [positions x outputs, width]."""
        added = self._added(slot.layer)[:, list(slot.places)]
        total = torch.zeros(len(added), width).index_add_(1, torch.tensor(slot.roots), added)
        return total / total.sum(1).std().clamp_min(1e-12)


def _is_plain(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _kernels(layer: Any) -> Tensor:
    """Weights [out, in, kernel]."""
    weight: Tensor = layer.weight.detach().cpu()
    return weight.flatten(2) if weight.ndim > 2 else weight[..., None]
