"""Learning from few labels: pseudo-labels, consistency with a teacher, and how strong augmentation may be."""

from models.semi_supervised.ctaugment import moved_rates, recognition
from models.semi_supervised.fixmatch import fixmatch_loss
from models.semi_supervised.mean_teacher import consistency_kl, consistency_mse, sigmoid_ramp, tie

__all__ = [
    "consistency_kl",
    "consistency_mse",
    "fixmatch_loss",
    "moved_rates",
    "recognition",
    "sigmoid_ramp",
    "tie",
]
