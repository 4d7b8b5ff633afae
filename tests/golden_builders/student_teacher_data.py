"""Builders of the recorded augmentations of students and teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.transforms.fixmatch import RandAugmentMC, operate

if TYPE_CHECKING:
    from tests.library.golden import Case

# Pixels are whole numbers.
TOLERANCE = 1e-6


def picture(recorded: Tensor) -> np.ndarray:
    return recorded.numpy().round().astype(np.uint8)


def randaugment_ops(case: Case) -> dict[str, Tensor]:
    image = Image.fromarray(picture(case.inputs["image"]))
    results = {}
    for key in case.shapes:
        name, level, sign = key.removeprefix("out.").rsplit("_", 2)
        changed = operate(image, name, int(level.removeprefix("v")), sign == "n")
        results[key] = torch.from_numpy(np.array(changed)).float()
    return results


class Recorded:
    """The recorded draws of an image, in the order in which they are used."""

    def __init__(self, draws: list[float]) -> None:
        self.draws = iter(draws)

    def random(self) -> float:
        return next(self.draws)


def randaugment_mc(case: Case) -> dict[str, Tensor]:
    inputs, pool, images = case.inputs, case.config["pool"], []
    for i, image in enumerate(inputs["image"]):
        draws: list[float] = []
        for op, level, applied, sign in zip(
            *(inputs[name][i].tolist() for name in ("op", "v", "u_apply", "u_sign")), strict=True
        ):
            # The middle of the part of [0, 1) that means it.
            draws += [(op + 0.5) / len(pool), (level - 0.5) / 9, applied, sign]
        width, height = image.shape[1], image.shape[0]
        draws += [float(side) / length for side, length in zip(inputs["cut"][i], (width, height), strict=True)]
        augment = RandAugmentMC()
        augment.py_random = Recorded(draws)  # type: ignore[assignment]
        images.append(torch.from_numpy(augment.apply(picture(image))).float())
    return {"out.image": torch.stack(images)}


CASES = {"randaugment_ops": randaugment_ops, "randaugment_mc": randaugment_mc}
