"""What networks with mixed kernels cost."""

import models.backbones  # noqa: F401  registers them

# Measured on the published implementations: parameters, and multiply-adds in millions (convolutions, mixing, attention
# or routing, classifier).
MEASURED = {
    "condconv_efficientnet_b0_4e": (13_314_116, 396.5),
    "condconv_efficientnet_b0_8e": (24_013_284, 407.2),
    "condconv_efficientnet_b1_8e": (39_715_968, 723.3),
    "dy_resnet10": (20_225_664, 908.9),
    "dy_resnet18": (45_475_008, 1859.0),
    "dy_resnet50": (100_895_176, 4188.0),
}
# Computed from the layers' sizes, with the parameters in thousands.
COMPUTED = {"dy_mobilenetv2_100": (11_146, 310.2), "dy_mobilenetv2_050": (3_944, 99.6)}
