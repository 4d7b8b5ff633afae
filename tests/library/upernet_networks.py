"""A tiny UPerNet, and what the published ones cost."""

from __future__ import annotations

from typing import Any

CONVNEXT: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20)}
TINY: dict[str, Any] = {"num_classes": 5, "hidden_dim": 8, "aux_dim": 6, "options": CONVNEXT}
# Measured on the published implementation, 150 classes: parameters, those without the auxiliary head, those of the
# backbone; height and width of an image, and its multiply-adds / 1e9 of convolutions and linear layers to one decimal.
MEASURED: dict[str, tuple[int, int, int, tuple[int, int], float]] = {
    "tiny": (60_242_636, 59_318_838, 27_821_472, (512, 2048), 938.5),
    "small": (81_877_196, 80_953_398, 49_456_032, (512, 2048), 1026.8),
    "base": (122_102_956, 120_884_246, 87_568_256, (512, 2048), 1169.3),
    "large": (234_994_796, 233_186_262, 196_233_024, (640, 2560), 2457.4),
    "xlarge": (391_140_396, 388_742_038, 348_151_552, (640, 2560), 3334.3),
}
