"""How a teacher follows its student: moving averages and spatial ensembles of past students."""

from models.smoothing.rules import effective_momentum, moving_average, renewed, spatial_ensemble, spatial_temporal
from models.smoothing.smoother import BatchNormPolicy, Smoother, has_batch_norm
from models.smoothing.units import Unit, Units

__all__ = [
    "BatchNormPolicy",
    "Smoother",
    "Unit",
    "Units",
    "effective_momentum",
    "has_batch_norm",
    "moving_average",
    "renewed",
    "spatial_ensemble",
    "spatial_temporal",
]
