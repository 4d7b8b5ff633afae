"""What the published cascades cost."""

# Parameters, trainable ones, and 1e9 multiply-adds of every stage, all measured with the published code.
TABLE = [
    ("t2t_vit_12", "both", 22_461_516, 22_360_140, (0.4677, 0.9784, 2.0089)),
    ("t2t_vit_12", "features", 22_433_484, 22_332_108, (0.4677, 0.9438, 1.8679)),
    ("t2t_vit_12", "relations", 20_918_988, 20_817_612, (0.4677, 0.9253, 1.9037)),
    ("t2t_vit_12", "none", 20_890_956, 20_789_580, (0.4677, 0.8907, 1.7626)),
    ("t2t_vit_14", "both", 67_881_836, 67_735_916, (1.2006, 2.6175, 5.4460)),
    ("t2t_vit_14", "none", 64_670_796, 64_524_876, (1.2006, 2.3948, 4.7835)),
    ("deit_small", "both", 70_442_232, 70_442_232, (1.1429, 2.5002, 5.1575)),
    ("deit_small", "none", 67_257_912, 67_257_912, (1.1429, 2.2999, 4.5989)),
]
