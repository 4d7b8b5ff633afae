"""What can be added to any run."""

from callbacks.averaging import WeightEMA
from callbacks.bad_samples import BadSamples
from callbacks.checkpoints import Checkpoints
from callbacks.cost import Cost
from callbacks.non_finite import NonFiniteGuard, NonFiniteLoss
from callbacks.preemption import Preempted, Preemption
from callbacks.step_seed import StepSeed

__all__ = [
    "BadSamples",
    "Checkpoints",
    "Cost",
    "NonFiniteGuard",
    "NonFiniteLoss",
    "Preempted",
    "Preemption",
    "StepSeed",
    "WeightEMA",
]
