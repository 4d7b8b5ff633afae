"""What the published networks cost, and their configs."""

from __future__ import annotations

from typing import Any

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)
SCRIPT: dict[str, Any] = {"growth_factors": (4, 2, 1, 1), "bottleneck_factors": (4, 2, 1, 1), "scales": (1, 2, 3, 3)}
LARGE: dict[str, Any] = {
    "num_classes": 1000,
    "stem": "imagenet",
    "num_channels": 32,
    "growth_rate": 16,
    "growth_factors": (4, 2, 2, 1),
    "bottleneck_factors": (4, 2, 2, 1),
    "scales": (1, 2, 3, 4),
    "step": 8,
    "head_width": None,
}
# Measured on the published implementation: options, images, parameters, millions of multiply-adds up to each exit (None
# where not recorded), and the same as its own counter has it.
MEASURED: dict[str, tuple[dict[str, Any], tuple[int, int, int], int, list[float | None], list[float] | None]] = {
    "cifar10_script": (
        SCRIPT,
        CIFAR,
        3_261_830,
        [15.74, 31.17, 44.46, 50.15, 60.31, 63.30, 89.52, 94.25],
        [15.81, 31.28, 44.66, 50.36, 60.65, 63.65, 90.17, 94.90],
    ),
    "cifar100_script": (
        SCRIPT | {"num_classes": 100},
        CIFAR,
        3_354_710,
        [15.75, 31.20, 44.50, 50.20, 60.37, 63.37, 89.60, 94.34],
        None,
    ),
    "cifar10_readme": (
        {"step": 2, "step_mode": "lg"},
        CIFAR,
        2_547_601,
        [8.32, 21.69, 32.70, 41.35, 52.92, 58.61],
        [8.36, 21.77, 32.84, 41.52, 53.23, 58.92],
    ),
    "cifar10_even": ({"step": 2}, CIFAR, 1_753_840, [8.32, 16.03, 22.09, 25.24, 29.71, 31.54], None),
    "imagenet_readme": (
        LARGE,
        IMAGENET,
        131_123_991,
        [None] * 7 + [2822.6],
        [246.5, 631.2, 860.4, 1041.1, 1869.9, 2160.4, 2734.3, 2828.3],
    ),
    "imagenet_published": (
        LARGE | {"num_channels": 64},
        IMAGENET,
        149_144_186,
        [None] * 7 + [3326.3],
        [435.0, 888.7, 1153.4, 1352.5, 2279.9, 2588.5, 3235.5, 3333.5],
    ),
    "imagenet_script": (
        LARGE | {"num_channels": 16, "growth_factors": (4, 2, 1, 1), "bottleneck_factors": (4, 2, 1, 1)},
        IMAGENET,
        87_972_617,
        [None] * 8,
        [168.1, 520.5, 731.9, 903.8, 1052.3, 1118.8, 1589.0, 1681.0],
    ),
}
CONFIGS = {
    "ranet_cifar10": "cifar10_script",
    "ranet_cifar100": "cifar100_script",
    "ranet_cifar10_step2_lg": "cifar10_readme",
    "ranet_cifar10_step2": "cifar10_even",
    "ranet_imagenet1k": "imagenet_published",
    "ranet_imagenet1k_32channels": "imagenet_readme",
    "ranet_imagenet1k_16channels": "imagenet_script",
}
