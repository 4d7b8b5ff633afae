"""Instance-conditional distillation: a decoder learns where the evidence for an object is; there, maps are matched.

Reference: "Instance-Conditional Knowledge Distillation for Object Detection", arXiv 2110.12724.
"""

from models.distillation.instance_conditional.term import InstanceConditional

__all__ = ["InstanceConditional"]
