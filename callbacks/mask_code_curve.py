"""The place by which configs know the curve of mask codes."""

from callbacks.reports.mask_code_curve import MaskCodeCurve

__all__ = ["MaskCodeCurve"]
