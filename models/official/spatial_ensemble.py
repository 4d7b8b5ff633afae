"""Official checkpoints of BYOL with a spatial ensemble as teacher <-> our names of BYOL with biases.

The backbone has the names of torchvision, which are timm's; projector and predictor lie in one row there.

Reference: "Spatial Ensemble", arXiv 2110.01253; layout of tengteng95/Spatial_Ensemble at e94a54b0.
"""

from models.official.layout import BATCH_NORM, WEIGHT_BIAS, Layout, Row
from models.pixels import IMAGENET


def _head(encoder: str, ours: str, first: int) -> list[Row]:
    """Linear map, norm and linear map from a place in the row on."""
    kinds = {0: WEIGHT_BIAS, 1: BATCH_NORM, 3: WEIGHT_BIAS}
    return [(f"{encoder}.fc.{first + place}", f"{ours}.{place}", what) for place, what in kinds.items()]


LAYOUT = Layout(
    "Spatial Ensemble",
    tables=[
        [
            *_head("student_encoder", "student.projector", 0),
            *_head("student_encoder", "predictor", 4),
            *_head("teacher_encoder", "teacher.projector", 0),
            ("student_encoder.*", "student.backbone.*"),
            ("teacher_encoder.*", "teacher.backbone.*"),
        ]
    ],
    official=[r"student_encoder\.fc\.4\.weight", r"teacher_encoder\..*"],
    ours=[r"student\.projector\.3\.bias", r"predictor\.3\.bias"],
    pixels=IMAGENET | {"size": (224, 224), "interpolation": "bilinear", "crop": 0.875},
    published="teacher",
)
