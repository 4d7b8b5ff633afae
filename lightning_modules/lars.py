"""LARS in the variants that are in use, which differ in more than their names say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from models.mistakes import Mistake

Variant = Literal["byol", "dino", "solo", "solo_clip", "solo_all", "lightly", "se"]

_EPS = 1e-8


class LARS(Optimizer):
    """Stochastic gradient descent whose step is proportional to the norm of each tensor.

    With a weight w, its gradient g, weight decay d and trust coefficient e, the increment is u, which enters the
    momentum v <- mu v + u; then w <- w - lr v.

    | variant | adapted are | u |
    |---|---|---|
    | `byol`, `dino` | tensors of two dimensions or more | (g + d w) e|w| / |g + d w|; the factor is 1 if a norm is 0 |
    | `solo` | the same | (g + d w) q with q = e|w| / (|g| + d|w| + 1e-8); u = g if a norm is 0 |
    | `solo_clip` | the same | as `solo` with q = min(q / lr, 1) |
    | `solo_all` | all tensors | as `solo` |
    | `lightly` | groups with weight decay | as `solo` |
    | `se` | groups without `lars_exclude`, where |w||g| > 1e-8 | lr q (g + d w) with q = e|w| / (|g| + d|w|) |

    Of tensors that are not adapted u = g; of `se`, u = lr (g + d w), with the decay of their group, and w <- w - v.

    Reference: "Large Batch Training of Convolutional Networks", arXiv 1708.03888; the variants are those of the code of
    BYOL, DINO, solo-learn, lightly and Spatial Ensemble.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        momentum: mu.
        weight_decay: d.
        eta: Trust coefficient e.
        variant: See the table.
        lars_exclude: Whether a group is not adapted, in `se`.

    Raises:
        Mistake: An unknown variant.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.2,
        momentum: float = 0.9,
        weight_decay: float = 1.5e-6,
        eta: float = 1e-3,
        variant: Variant = "byol",
        lars_exclude: bool = False,
    ) -> None:
        if variant not in get_args(Variant):
            raise Mistake(f"no variant of LARS is called {variant!r}; there are {', '.join(get_args(Variant))}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        super().__init__(params, {**defaults, "variant": variant, "lars_exclude": lars_exclude})

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step.

        Args:
            closure: Evaluates the loss again.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for adapted in (True, False):
                alike = [weight for weight in weights if _is_adapted(weight, group) == adapted]
                if alike:
                    self._step(alike, group, adapted)
        return loss

    def _step(self, weights: list[Tensor], group: dict[str, Any], adapted: bool) -> None:
        in_buffer = group["variant"] == "se"
        increments = _increments(weights, group, adapted)
        if in_buffer:
            torch._foreach_mul_(increments, group["lr"])
        fresh = [i for i, weight in enumerate(weights) if not self.state[weight]]
        for i in fresh:
            self.state[weights[i]]["momentum_buffer"] = torch.zeros_like(weights[i])
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, increments)
        torch._foreach_add_(weights, buffers, alpha=-1.0 if in_buffer else -group["lr"])


def _is_adapted(weight: Tensor, group: dict[str, Any]) -> bool:
    variant = group["variant"]
    if variant == "solo_all":
        return True
    if variant == "lightly":
        return group["weight_decay"] != 0
    if variant == "se":
        return not group["lars_exclude"]
    return weight.ndim > 1


def _increments(weights: list[Tensor], group: dict[str, Any], adapted: bool) -> list[Tensor]:
    variant, decay, eta = group["variant"], group["weight_decay"], group["eta"]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    decayed = list(torch._foreach_add(gradients, weights, alpha=decay))
    if not adapted:
        return decayed if variant == "se" else list(torch._foreach_mul(gradients, 1.0))
    lengths = torch.stack(torch._foreach_norm(weights))
    if variant in ("byol", "dino"):
        slopes = torch.stack(torch._foreach_norm(decayed))
        factors = torch.where((lengths > 0) & (slopes > 0), eta * lengths / slopes, 1.0)
        torch._foreach_mul_(decayed, list(factors.unbind()))
        return decayed
    slopes = torch.stack(torch._foreach_norm(gradients))
    if variant == "se":
        factors = torch.where(lengths * slopes > _EPS, eta * lengths / (slopes + decay * lengths), 1.0)
        torch._foreach_mul_(decayed, list(factors.unbind()))
        return decayed
    factors = eta * lengths / (slopes + decay * lengths + _EPS)
    if variant == "solo_clip":
        factors = (factors / group["lr"]).clamp(max=1.0)
    usable = (lengths > 0) & (slopes > 0)
    torch._foreach_mul_(decayed, list(torch.where(usable, factors, 1.0).unbind()))
    # Where a norm is 0, the gradient itself: without decay, which would be of a weight of 0 or alone.
    return [torch.where(use, new, old) for use, new, old in zip(usable, decayed, gradients, strict=True)]
