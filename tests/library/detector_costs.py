"""What a detector costs."""

import torch

from models.compute import flop_counter
from models.detectors.deformable_detr import DeformableDETR


def giga_macs(network: DeformableDETR, height: int, width: int) -> float:
    """Multiply-adds in billions as the official modules spend them: heads of all layers, and refining boxes twice.

    Those of sampling, which the official numbers leave out, are left out.
    """
    image = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad(), flop_counter() as counter:
        predictions = network.eval().predict(image, image[:, 0].bool(), all_layers=True)
    operators = counter.get_flop_counts()["Global"]
    flops = sum(number for operator, number in operators.items() if "embedding_bag" not in str(operator))
    layers, _, queries, _ = predictions.boxes.shape
    head = sum(p.numel() for p in network.bbox_embed[0].parameters() if p.dim() > 1)
    return (flops / 2 + (layers * queries * head if network.refine else 0)) / 1e9
