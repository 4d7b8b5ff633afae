"""Builders of the recorded SOLQ cases below the transformer: backbone and position encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from models.detectors.batching import pad
from models.detectors.features import Features
from models.layers.position_encoding import sine_position_encoding

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def resnet(config: dict[str, Any]) -> dict[str, Any]:
    """The narrow ResNet of a recorded case, as options of `narrow_resnet`."""
    return {"layers": config["blocks"], "width": config["stem_width"]}


def images_of(case: Case) -> list[Tensor]:
    return [case.inputs[f"image_{i}"] for i in range(len(case.config["image_sizes"]))]


def pos_sine(case: Case) -> dict[str, Tensor]:
    config = case.config
    position = sine_position_encoding(
        case.inputs["mask"].bool(), config["num_pos_feats"], config["offset"], config["temperature"]
    )
    return {"out.pos": position}


def backbone_frozen_bn(case: Case) -> dict[str, Tensor]:
    network = Features("narrow_resnet", resnet(case.config), frozen_norm=case.config["frozen_batch_norm"])
    network.load_state_dict(case.state)
    images, padding = pad(images_of(case))
    results = {"out.padded_mask": padding.float()}
    for i, (x, mask) in enumerate(network(images, padding)):
        results |= {f"out.feat_{i}": x, f"out.mask_{i}": mask.float()}
    return results


CASES = {"pos_sine": pos_sine, "backbone_frozen_bn": backbone_frozen_bn}
