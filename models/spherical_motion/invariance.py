"""Which weights are scale-invariant, found by a test of their gradients and not by their names.

A loss does not change with the length of a weight w exactly if its gradient g stands on w: <w, g> = 0 (Euler). What the
inner product is without that is told by the root of the sum of its squared terms, so that

    z = |sum of w_i g_i| / sqrt(sum of (w_i g_i)^2)

is about 1 or more of a weight whose length counts and nearly 0 of one whose length does not, whatever its size. Both
sums are taken over a few steps, and for every block of filters: what is cancelled by a batch norm is invariant filter
by filter, by a group norm group by group, by a layer norm as a whole. A bias in front of a norm that does not cancel
it is invariant with its weight, and not without.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

# The largest z of an invariant weight, of which gradients in bfloat16 have a hundredth.
LARGEST = 0.03
LOOKS = 8
# What a bias has to leave of the squared products of its kernel to belong to it.
ALONE = 0.25
# Of a loss, as a share of it, when weights are scaled.
LOSS_CHANGE = 1e-4
# How far aside weights are tried, as a share of their size.
ASIDE = 0.3


@dataclass(frozen=True)
class Invariant:
    """A weight whose length the loss does not depend on.

    Args:
        name: of the module that holds it.
        tensors: names of its parameters: a kernel, perhaps with its bias.
        blocks: parts that are invariant each by itself: as many as filters, some, or one.
        filters: how many filters it has.
        turned: whether its second axis counts filters, as in transposed convolutions.
        loose: blocks that are not invariant although most are, such as filters that see next to nothing, so that the
            norm's epsilon counts.
    """

    name: str
    tensors: tuple[str, ...]
    blocks: int
    filters: int
    turned: bool = False
    loose: tuple[int, ...] = ()

    @property
    def unit(self) -> str:
        """What is invariant by itself: `filter`, `group` or `layer`."""
        if self.blocks == self.filters:
            return "filter"
        return "layer" if self.blocks == 1 else "group"

    def scale(self, parameters: Mapping[str, Tensor], factors: Tensor) -> None:
        """Multiplies its blocks in place, but for those that are loose.

        Args:
            parameters: by name, without gradients.
            factors: of each block [blocks].
        """
        factors = factors.index_fill(0, torch.tensor(self.loose, dtype=torch.long), 1.0)
        for tensor in self.view(parameters):
            shape = [-1, *[1] * (tensor.ndim - 1)]
            tensor.mul_(factors.repeat_interleave(self.filters // self.blocks).view(shape).to(tensor))

    def view(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Its tensors, or others of their names, such that the first axis counts filters; they share memory.

        Args:
            tensors: by name.
        """
        found = [tensors[name] for name in self.tensors]
        return [found[0].transpose(0, 1), *found[1:]] if self.turned else found


class Evidence:
    """Gathers what gradients say of the weights of a module, a look at a time; the weights are left alone.

    Args:
        module: its trainable parameters of two axes or more are looked at.
        wanted: says of a parameter's name whether it is.
    """

    def __init__(self, module: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> None:
        self.candidates = [each for each in _candidates(module) if wanted(each.tensors[0])]
        # Of each candidate and look [sums, filters]: of the products of weight and gradient, and of their squares; the
        # same of the bias, if there is one.
        self.seen: dict[str, list[Tensor]] = {each.tensors[0]: [] for each in self.candidates}
        self.looks = 0

    @torch.no_grad()
    def look(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Takes the gradients of a step.

        Args:
            weights: parameters by name.
            gradients: of the loss, by the same names; those that have none are left out.
        """
        self.looks += 1
        for each in self.candidates:
            if each.tensors[0] not in gradients:
                continue
            sums = []
            own = {name: gradients.get(name, torch.zeros_like(weights[name])) for name in each.tensors}
            for w, g in zip(each.view(weights), each.view(own), strict=True):
                w, g = (x.float().reshape(each.filters, -1) for x in (w, g))
                product = w * g
                sums += [product.sum(1), product.square().sum(1)]
            self.seen[each.tensors[0]].append(torch.stack(sums))

    def found(self) -> list[Invariant]:
        """The weights that are invariant, in the smallest blocks that are; those without a gradient are not known."""
        return [found for each in self.candidates if (found := self._judged(each)) is not None]

    def expected(self, weight: Invariant) -> float:
        """What the loss would change by, were a candidate scaled by e and were it not invariant."""
        return float(torch.stack(self.seen[weight.tensors[0]])[:, 1].sum(1).mean().sqrt())

    def _judged(self, candidate: Invariant) -> Invariant | None:
        looks = self.seen[candidate.tensors[0]]
        if not looks:
            return None
        product, squares, *bias = torch.stack(looks).double().cpu().unbind(1)
        names = candidate.tensors[:1]
        # Of a kernel with its bias the products cancel each other; where the kernel is invariant alone they do not.
        if bias and (product + bias[0]).sum(1).square().sum() < ALONE * product.sum(1).square().sum():
            product, squares, names = product + bias[0], squares + bias[1], candidate.tensors
        for blocks in (n for n in range(candidate.filters, 0, -1) if candidate.filters % n == 0):
            sums = product.reshape(len(looks), blocks, -1).sum(2).square().sum(0)
            expected = squares.reshape(len(looks), blocks, -1).sum((0, 2))
            holds = sums <= LARGEST**2 * expected
            live = expected > 0
            if 2 * (holds & live).sum() > live.sum():
                loose = tuple((~holds).nonzero()[:, 0].tolist())
                return Invariant(candidate.name, names, blocks, candidate.filters, candidate.turned, loose)
        return None


def invariant_weights(module: nn.Module, loss: Callable[[], Tensor]) -> list[Invariant]:
    """The scale-invariant weights of a module, by a few backward passes and forward passes with scaled weights.

    What gradients suggest is tried: every block is made two or three times as long, all at once and, if that changes
    the loss by more than one part in 10,000, weight by weight, next to what their gradients let expect. All is done a
    little aside of the weights as they are, each time elsewhere, for zeros, such as the scales of residual branches
    and the biases of a new network, hide what there will be. The module is left as it was, with its gradients and
    statistics, and so are the states of all random generators; every pass draws the same.

    Args:
        module: in the mode that it is trained in.
        loss: computes a scalar with the module.
    """
    parameters = {name: each for name, each in module.named_parameters() if each.requires_grad}
    weights = {name: each.detach() for name, each in parameters.items()}
    kept = {name: each.clone() for name, each in weights.items()}
    generator = torch.Generator().manual_seed(0)
    evidence = Evidence(module)
    try:
        for _ in range(LOOKS):
            for name, each in weights.items():
                noise = torch.randn(each.shape, generator=generator).to(each)
                each.copy_(kept[name] + noise * (ASIDE * (each.square().mean().sqrt() if each.any() else 1.0)))
            with _undisturbed(module), torch.enable_grad():
                value = loss()
                gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            evidence.look(weights, {name: g for name, g in zip(weights, gradients, strict=True) if g is not None})
        before, suggested = value.item(), evidence.found()
        least = LOSS_CHANGE * abs(before)
        if _change(module, loss, before, suggested) <= least:
            return suggested
        allowed = {each: max(least, LARGEST * evidence.expected(each)) for each in suggested}
        return [each for each in suggested if _change(module, loss, before, [each]) <= allowed[each]]
    finally:
        for name, each in weights.items():
            each.copy_(kept[name])


@torch.no_grad()
def _change(module: nn.Module, loss: Callable[[], Tensor], before: float, weights: list[Invariant]) -> float:
    """What a loss changes by when weights are scaled."""
    parameters = dict(module.named_parameters())
    kept = {name: parameters[name].clone() for each in weights for name in each.tensors}
    try:
        for each in weights:
            factors = 2.0 + torch.arange(each.blocks) % 2
            each.scale(parameters, factors)
        with _undisturbed(module):
            return abs(loss().item() - before)
    finally:
        for name, value in kept.items():
            parameters[name].copy_(value)


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Puts buffers and the states of random generators back to what they were."""
    buffers = {name: each.clone() for name, each in module.named_buffers()}
    states = random.getstate(), np.random.get_state()
    devices = {each.device for each in module.parameters()} - {torch.device("cpu")}
    kind = next((each.type for each in devices), "cuda")
    try:
        with torch.random.fork_rng([each.index for each in devices if each.index is not None], device_type=kind):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        with torch.no_grad():
            for name, each in module.named_buffers():
                each.copy_(buffers[name])


def _candidates(module: nn.Module) -> Iterator[Invariant]:
    """Every trainable weight of two axes or more, with the bias of its module as far as it has one."""
    for name, owner in module.named_modules():
        for own, parameter in owner.named_parameters(recurse=False):
            if parameter.ndim < 2 or not parameter.requires_grad:
                continue
            turned = bool(getattr(owner, "transposed", False)) and getattr(owner, "groups", 1) == 1
            filters = parameter.shape[1 if turned else 0]
            # A parametrised weight lies in a module of its own, two below that of its bias.
            place = name.rpartition(".")[0].rpartition(".")[0] if isinstance(owner, ParametrizationList) else name
            bias = own.replace("weight", "bias") if "weight" in own else "bias"
            there = dict(module.get_submodule(place).named_parameters(recurse=False))
            has_bias = bias in there and there[bias].requires_grad and there[bias].shape == (filters,)
            names = (f"{name}.{own}", f"{place}.{bias}")[: 1 + has_bias]
            yield Invariant(place, tuple(each.lstrip(".") for each in names), filters, filters, turned)
