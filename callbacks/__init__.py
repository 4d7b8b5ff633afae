"""What can be added to any run."""

from callbacks.annealing import Annealing
from callbacks.averaging import AveragedWeights, WeightEMA
from callbacks.bad_samples import BadSamples
from callbacks.checkpoints import Checkpoints
from callbacks.compute_budget import ComputeBudget
from callbacks.monitored import Monitored
from callbacks.non_finite import NonFiniteGuard, NonFiniteLoss
from callbacks.precise_bn import PreciseBN
from callbacks.preemption import Preempted, Preemption
from callbacks.pruning import MaskPruning, SoftFilterPruning
from callbacks.reports.cost import Cost
from callbacks.reports.exit_curve import ExitCurve
from callbacks.reports.pruned_network import PrunedNetwork
from callbacks.reports.spherical_motion import SphericalMotionCurve
from callbacks.reports.threshold_curve import ThresholdCurve
from callbacks.slimming import Slimming
from callbacks.smoothing import Rule, Smoothing
from callbacks.spherical_motion import SphericalMotion
from callbacks.step_seed import StepSeed
from callbacks.structure_selection import StructureSelection
from callbacks.sub_networks import SubNetworks

__all__ = [
    "Annealing",
    "AveragedWeights",
    "BadSamples",
    "Checkpoints",
    "ComputeBudget",
    "Cost",
    "ExitCurve",
    "MaskPruning",
    "Monitored",
    "NonFiniteGuard",
    "NonFiniteLoss",
    "PreciseBN",
    "Preempted",
    "Preemption",
    "PrunedNetwork",
    "Rule",
    "Slimming",
    "Smoothing",
    "SoftFilterPruning",
    "SphericalMotion",
    "SphericalMotionCurve",
    "StepSeed",
    "StructureSelection",
    "SubNetworks",
    "ThresholdCurve",
    "WeightEMA",
]
