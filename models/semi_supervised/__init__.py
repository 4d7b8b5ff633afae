"""Losses of learning from few labels: pseudo-labels and consistency with a teacher."""

from models.semi_supervised.fixmatch import fixmatch_loss
from models.semi_supervised.mean_teacher import consistency_kl, consistency_mse, sigmoid_ramp, tie

__all__ = ["consistency_kl", "consistency_mse", "fixmatch_loss", "sigmoid_ramp", "tie"]
