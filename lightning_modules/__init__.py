"""LightningModules, one file a task: losses, optimiser, metrics, logging."""

from lightning_modules.classification import Classification, Mix
from lightning_modules.detection import Detection
from lightning_modules.distillation import Distillation
from lightning_modules.findings import Findings, gathered
from lightning_modules.lars import LARS
from lightning_modules.pose_estimation import PoseEstimation
from lightning_modules.question_answering import QuestionAnswering
from lightning_modules.referring import ReferringExpressions
from lightning_modules.schedules import (
    AverageWarmup,
    Constant,
    CosineArc,
    MultiStep,
    OneCycle,
    Poly,
    SpanTemperature,
    Staircase,
    StairWarmup,
    WarmupCosine,
)
from lightning_modules.segmentation import Segmentation
from lightning_modules.self_supervised import SelfSupervised
from lightning_modules.semi_supervised import FixMatch, MeanTeacher
from lightning_modules.task import Task

__all__ = [
    "LARS",
    "AverageWarmup",
    "Classification",
    "Constant",
    "CosineArc",
    "Detection",
    "Distillation",
    "Findings",
    "FixMatch",
    "MeanTeacher",
    "Mix",
    "MultiStep",
    "OneCycle",
    "Poly",
    "PoseEstimation",
    "QuestionAnswering",
    "ReferringExpressions",
    "Segmentation",
    "SelfSupervised",
    "SpanTemperature",
    "StairWarmup",
    "Staircase",
    "Task",
    "WarmupCosine",
    "gathered",
]
