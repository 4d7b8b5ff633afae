"""Classifiers: images [B, 3, H, W] -> logits [B, K], or a list of logits, one per exit, cheapest first."""

from models.classifiers.cifar_resnet import CIFARResNet
from models.classifiers.densenet import CIFARDenseNet
from models.classifiers.drnet import DRNet, ResolutionPredictor
from models.classifiers.dvt import DVT
from models.classifiers.dynamic_kernels import dynamic_kernels
from models.classifiers.preact_resnet import PreActResNet
from models.classifiers.pruned import pruned
from models.classifiers.ranet import RANet
from models.classifiers.reduced_tokens import merged_tokens, pruned_tokens
from models.classifiers.routed_spans import routed_spans
from models.classifiers.scaled_branches import scaled_branches
from models.classifiers.shake_shake import ShakeShake
from models.classifiers.shallow_deep import ShallowDeepNetwork
from models.classifiers.timm_classifier import timm_classifier
from models.classifiers.vgg import VGG, ImageNetVGG
from models.classifiers.wide_resnet import WideResNet

__all__ = [
    "DVT",
    "VGG",
    "CIFARDenseNet",
    "CIFARResNet",
    "DRNet",
    "ImageNetVGG",
    "PreActResNet",
    "RANet",
    "ResolutionPredictor",
    "ShakeShake",
    "ShallowDeepNetwork",
    "WideResNet",
    "dynamic_kernels",
    "merged_tokens",
    "pruned",
    "pruned_tokens",
    "routed_spans",
    "scaled_branches",
    "timm_classifier",
]
