"""Segmenters: images [B, 3, H, W] -> logits [B, C, H, W], or a list of them, one per exit, cheapest first."""

from models.segmenters.adpc import ADPC
from models.segmenters.dynamic_routing import DynamicRouting
from models.segmenters.hrnet_segmenter import HRNetSegmenter
from models.segmenters.upernet import UperNet

__all__ = ["ADPC", "DynamicRouting", "HRNetSegmenter", "UperNet"]
