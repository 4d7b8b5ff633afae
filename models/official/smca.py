"""Official SMCA checkpoints <-> our names: DETR's, and those of the Gaussian prior.

Reference: "Fast Convergence of DETR with Spatially Modulated Co-Attention", arXiv 2101.07448; layout of
gaopengcuhk/SMCA-DETR at e4df3ab.
"""

from models.official.detr import DETECTOR
from models.official.layout import WEIGHT_BIAS, Layout, Maybe
from models.pixels import IMAGENET

_LAYERS = "transformer.decoder.layers"

LAYOUT = Layout(
    "SMCA",
    tables=[
        [
            *((f"{_LAYERS}.0.point1.layers.{i}", f"prior.centre.layers.{i}", WEIGHT_BIAS) for i in range(3)),
            (f"{_LAYERS}.{{decoder}}.norm4", "prior.norms.{decoder}", WEIGHT_BIAS),
            (f"{_LAYERS}.{{decoder}}.point2", "prior.offsets.{decoder}", WEIGHT_BIAS),
            # Fixed scales (type1) have no weights.
            Maybe([(f"{_LAYERS}.{{decoder}}.point3", "prior.scales.{decoder}", WEIGHT_BIAS)]),
            *DETECTOR,
        ]
    ],
    official=[r"transformer\.decoder\.layers\.0\.point2\.weight"],
    ours=[r"prior\.offsets\.0\.weight"],
    pixels=IMAGENET,
)
