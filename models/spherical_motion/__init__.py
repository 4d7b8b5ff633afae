"""How weights that a norm follows move: on a sphere, to an equilibrium that learning rate and weight decay set.

References: "Spherical Motion Dynamics: Learning Dynamics of Normalized Neural Network using SGD and Weight Decay",
    arXiv
2006.08419, for SGD; "Rotational Equilibrium: How Weight Decay Balances Learning Across Neural Networks", arXiv
2305.17212, for the other optimisers.
"""

from models.spherical_motion.geometry import angular_update, block_dot, tangential_update, turned, unit_gradient
from models.spherical_motion.invariance import Evidence, Invariant, invariant_weights
from models.spherical_motion.random_walk import Walk, random_walk
from models.spherical_motion.schedule import Drop, drops, followed, late_from, remarks
from models.spherical_motion.theory import (
    Setting,
    Theory,
    assumptions,
    effective_learning_rate,
    equilibrium_angle,
    equilibrium_norm,
    rescaling,
    setting_of,
    steps_to_equilibrium,
    time_constant,
)

__all__ = [
    "Drop",
    "Evidence",
    "Invariant",
    "Setting",
    "Theory",
    "Walk",
    "angular_update",
    "assumptions",
    "block_dot",
    "drops",
    "effective_learning_rate",
    "equilibrium_angle",
    "equilibrium_norm",
    "followed",
    "invariant_weights",
    "late_from",
    "random_walk",
    "remarks",
    "rescaling",
    "setting_of",
    "steps_to_equilibrium",
    "tangential_update",
    "time_constant",
    "turned",
    "unit_gradient",
]
