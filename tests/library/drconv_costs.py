"""What ShuffleNets with DRConv cost."""

# Parameters, then millions of multiply-adds at 224 x 224: static convolutions, guided ones, kernels, routing, guide,
# classifier, all. Measured on the released network, each position counted with its one kernel.
COSTS = {
    "x0_5": (2_293_792, 20.94, 18.51, 7.37, 0.11, 2.15, 1.02, 50.10),
    "x1_0": (7_273_976, 41.30, 103.49, 43.06, 0.27, 4.33, 1.02, 193.47),
    "x1_5": (14_778_656, 62.27, 235.68, 99.12, 0.40, 6.26, 1.02, 404.75),
}
