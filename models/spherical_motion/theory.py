"""Equilibrium of scale-invariant weights: how far a step turns them, how long they are, and when they arrive.

With learning rate eta, weight decay lambda and momentum alpha (b1 and b2 of adaptive optimisers):

| theory | angle of a step in equilibrium | y = |w|^p relaxes in | norm in equilibrium |
|---|---|---|---|
| sgd | sqrt(2 eta lambda) | p = 4: 1 / (4 eta lambda) | (L eta / (2 lambda))^(1/4) |
| sgdm | sqrt(2 eta lambda / (1 + alpha)) | p = 4: (1 - alpha) / (4 eta lambda) | see `equilibrium_norm` |
| adamw | sqrt(2 eta lambda (1 - b1) / (1 + b1)) | p = 2: 1 / (2 eta lambda) | sqrt(eta d / (2 lambda)) |
| lion | sqrt(pi eta lambda ((1 - b1)^2 + b1^2 (1 - b2) / (1 + b2))) | p = 2: 1 / (2 eta lambda) | eta sqrt(d) / angle |

L is the mean squared unit gradient (of momentum h, see `equilibrium_norm`), d the number of elements. The first two
rows are theorems 1 to 3 of arXiv 2006.08419, for weight decay inside the buffer; the others, for decay beside it, are
random walks of arXiv 2305.17212.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Theory = Literal["sgd", "sgdm", "adamw", "lion", "none"]


@dataclass(frozen=True)
class Setting:
    """What an optimiser does to a weight.

    Args:
        theory: which formulas hold; `none` for an optimiser without.
        lr: eta.
        weight_decay: lambda.
        momentum: alpha of SGD, b1 of adaptive optimisers.
        beta2: b2 of Lion.
    """

    theory: Theory
    lr: float
    weight_decay: float
    momentum: float = 0.0
    beta2: float = 0.0

    @property
    def balances(self) -> bool:
        """Whether there is an equilibrium to come to."""
        return self.theory != "none" and self.weight_decay > 0 and self.lr > 0

    @property
    def power(self) -> int:
        """p, so that |w|^p relaxes exponentially: 4 where gradients shrink as weights grow, 2 where steps do not."""
        return 2 if self.theory in ("adamw", "lion") else 4


def setting_of(optimizer: str, group: Mapping[str, Any], theory: Theory | None = None) -> Setting:
    """What an optimiser does to the weights of a group.

    Args:
        optimizer: the name of its class.
        group: its options as PyTorch names them.
        theory: which formulas are to hold, where the class does not say: by default SGD's without Nesterov's momentum
            and dampening, those of AdamW (Adam with decoupled decay, without AMSGrad) and of Lion, and else none.
    """
    momentum, beta2 = float(group.get("momentum", 0.0)), 0.0
    if "betas" in group:
        momentum, beta2 = map(float, group["betas"][:2])
    if theory is None:
        theory = "none"
        if optimizer == "SGD" and not group.get("nesterov") and not group.get("dampening"):
            theory = "sgdm" if momentum else "sgd"
        elif optimizer in ("Adam", "AdamW") and not group.get("amsgrad"):
            decoupled = group.get("decoupled_weight_decay", optimizer == "AdamW")
            theory = "adamw" if decoupled else "none"
        elif optimizer == "Lion":
            theory = "lion"
    if theory == "sgd":
        momentum = 0.0
    return Setting(theory, float(group["lr"]), float(group.get("weight_decay", 0.0)), momentum, beta2)


def equilibrium_angle(setting: Setting) -> float:
    """How far a step turns a weight in equilibrium, in radians; not a number where there is none."""
    if not setting.balances:
        return math.nan
    b1, b2 = setting.momentum, setting.beta2
    sgd = math.sqrt(2 * setting.lr * setting.weight_decay)
    if setting.theory == "adamw":
        return sgd * math.sqrt((1 - b1) / (1 + b1))
    if setting.theory == "lion":
        return sgd * math.sqrt(math.pi / 2 * ((1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)))
    return sgd / math.sqrt(1 + b1)


def equilibrium_norm(setting: Setting, square: float, size: int) -> float:
    """The norm of a weight in equilibrium; not a number where there is none.

    Of SGD (L eta / (lambda (1 - alpha) (2 - lambda eta / (1 + alpha))))^(1/4), and without momentum
    (L eta / (2 lambda))^(1/4).

    Args:
        setting: the optimiser's.
        square: L, the mean of |g|^2 |w|^2, with momentum of h = (|g|^2 + 2 alpha <v, g>) |w|^2, v the buffer before the
            step and g the gradient without decay. Only SGD's theory asks for it.
        size: elements of the weight. Only the other theories ask for it.
    """
    if not setting.balances:
        return math.nan
    lr, decay, alpha = setting.lr, setting.weight_decay, setting.momentum
    if setting.theory == "adamw":
        return math.sqrt(lr * size / (2 * decay))
    if setting.theory == "lion":
        return lr * math.sqrt(size) / equilibrium_angle(setting)
    if square < 0:
        return math.nan
    if setting.theory == "sgd":
        return float((square * lr / (2 * decay)) ** 0.25)
    return float((square * lr / (decay * (1 - alpha) * (2 - decay * lr / (1 + alpha)))) ** 0.25)


def time_constant(setting: Setting) -> float:
    """Steps in which the distance of |w|^p from its equilibrium falls by e; infinite where there is none."""
    if not setting.balances:
        return math.inf
    inside = 1 - setting.momentum if setting.theory == "sgdm" else 1.0
    return inside / (setting.power * setting.lr * setting.weight_decay)


def steps_to_equilibrium(setting: Setting, drop: float) -> float:
    """Steps that weights need after the learning rate has dropped: decay alone has to shorten them.

    log(k) (1 - alpha) / (4 eta lambda) for SGD, eta after the drop. As printed, the corollary of arXiv 2006.08419 has a
    2 in place of the 4, which its own experiments do not take.

    Args:
        setting: after the drop.
        drop: k, what the learning rate was divided by.
    """
    return math.log(drop) * time_constant(setting)


def rescaling(setting: Setting, drop: float) -> float:
    """What a weight is multiplied by to be in equilibrium again at once: k^(-1/4) for SGD, k^(-1/2) for the others.

    Args:
        setting: the optimiser's.
        drop: k, what the learning rate is divided by.
    """
    return float(drop ** (-1 / setting.power))


def effective_learning_rate(setting: Setting, norm: float) -> float:
    """The learning rate of a weight's direction: eta / |w|^2, and eta / |w| where gradients are normalised.

    Args:
        setting: the optimiser's; one without a theory counts as SGD.
        norm: |w|.
    """
    return setting.lr / norm ** (setting.power // 2)


def assumptions(setting: Setting, squares: Sequence[float]) -> dict[str, bool]:
    """Which assumptions of the theorems for SGD a run of squared unit gradients meets: see below.

    `small_steps`: eta lambda < 0.01; `small_momentum`: eta lambda < (1 - sqrt(alpha))^2; `bounded`: no square is below
    the theorem's least share of their mean; `steady`: the means of the first and the second half differ by less than
    4 sqrt(V) (eta lambda)^(3/2) a step, V the variance.

    Args:
        setting: the optimiser's.
        squares: of |g|^2 |w|^2, with momentum of h; one a step, two at least.
    """
    rate, alpha = setting.lr * setting.weight_decay, setting.momentum
    mean = sum(squares) / len(squares)
    variance = sum((each - mean) ** 2 for each in squares) / len(squares)
    middle = len(squares) // 2
    first, second = sum(squares[:middle]) / middle, sum(squares[middle:]) / (len(squares) - middle)
    if alpha:
        floor = (1 - alpha) ** 3 * (1 + alpha) - 8 * rate * (1 - alpha)
        least = 6 * rate / floor if floor > 0 else math.inf
    else:
        least = 2 * rate / (1 - 2 * rate) if rate < 0.5 else math.inf
    return {
        "small_steps": rate < 0.01,
        "small_momentum": rate < (1 - math.sqrt(alpha)) ** 2,
        "bounded": min(squares) > 2 * least**2 * mean if math.isfinite(least) else False,
        "steady": abs(second - first) / (len(squares) / 2) < 4 * math.sqrt(variance) * rate**1.5,
    }
