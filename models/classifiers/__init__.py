"""Classifiers: images [B, 3, H, W] -> logits [B, K], or a list of logits, one per exit, cheapest first."""

from models.classifiers.timm_classifier import timm_classifier

__all__ = ["timm_classifier"]
