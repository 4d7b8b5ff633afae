"""Terms of a loss by which a network learns from a teacher: pieces, without a training."""

from models.distillation.attention import AttentionTransfer
from models.distillation.hard_labels import HardLabels
from models.distillation.hints import Hints
from models.distillation.instance_conditional import InstanceConditional
from models.distillation.logits import Logits
from models.distillation.masked import Masked
from models.distillation.relations import Relations
from models.distillation.seen import Seen
from models.distillation.term import Term

__all__ = [
    "AttentionTransfer",
    "HardLabels",
    "Hints",
    "InstanceConditional",
    "Logits",
    "Masked",
    "Relations",
    "Seen",
    "Term",
]
