"""How images look to a network: the order of their channels, their largest value, and how they are normalised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError

# What a file may ask for: a stranger's must not make images that no memory holds.
LARGEST_SIDE, CROPS = 4096, (0.1, 2.0)
# Normalised values closer than this are the same: a few thousandths lie between what papers and codes print.
SAME = 0.01


@dataclass(frozen=True)
class Pixels:
    """What becomes of the bytes of an image: `(byte * scale / 255 - mean) / std`, channel by channel.

    Args:
        mean: Subtracted from each channel, in ``order`` and on ``scale``.
        std: What each channel is then divided by.
        order: Order of the channels.
        scale: Largest value before the mean is subtracted: 1 or 255.
        size: Height and width of the images that weights were made for, where that is known.
        interpolation: How images are brought to this size.
        crop: Share of the resized shorter side that remains; above 1, the image gets a black border.

    Raises:
        DataError: If a value cannot be.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1.0
    size: tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    crop: float | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std", "size"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not (isinstance(values, tuple) and len(values) == 3 and all(map(_finite, values))):
                raise DataError(f"pixels.{name} is {_shown(values)}: three numbers are needed, one a channel.")
        if min(self.std) <= 0:
            raise DataError(f"pixels.std is {_shown(self.std)}: it must be positive.")
        choices = (
            ("order", self.order, ("rgb", "bgr")),
            ("scale", self.scale, (1.0, 255.0)),
            ("interpolation", self.interpolation, (None, "nearest", "bilinear", "bicubic")),
        )
        for name, value, known in choices:
            if isinstance(value, bool) or value not in known:
                listed = " or ".join(f"{choice:g}" if name == "scale" else f"'{choice}'" for choice in known if choice)
                raise DataError(f"pixels.{name} is {value!r}: it must be {listed}.")
        if self.size is not None and not (
            isinstance(self.size, tuple)
            and len(self.size) == 2
            and all(isinstance(side, int) and 1 <= side <= LARGEST_SIDE for side in self.size)
        ):
            raise DataError(f"pixels.size is {_shown(self.size)}: height and width are from 1 to {LARGEST_SIDE}.")
        if self.crop is not None and not (_finite(self.crop) and CROPS[0] <= self.crop <= CROPS[1]):
            raise DataError(f"pixels.crop is {self.crop!r}: a share from {CROPS[0]:g} to {CROPS[1]:g} is needed.")

    @classmethod
    def stated(cls, plain: Any) -> Pixels:
        """Reads what a network or a file states, in plain values.

        Args:
            plain: What ``plain`` returns, or ``models.pixels`` states.

        Raises:
            DataError: If it is no such statement.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(plain, Mapping) or not {"mean", "std"} <= plain.keys() <= names:
            raise DataError(f"a statement of pixels has mean and std, and may have {', '.join(sorted(names))}.")
        return cls(**plain)

    def plain(self) -> dict[str, Any]:
        """Plain values, without those that nobody knows."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}

    def of_values_alone(self) -> Pixels:
        """The same without the size of images and how they are brought to it."""
        return dataclasses.replace(self, size=None, interpolation=None, crop=None)

    def sized(self, side: int) -> Pixels:
        """The same for square images of another size."""
        return dataclasses.replace(self, size=(side, side))

    def agree(self, other: Pixels) -> bool:
        """Whether images come out alike, whatever their size."""
        ends = [
            [(value - mean) / std for mean, std in zip(pixels._mean, pixels._std, strict=True) for value in (0.0, 1.0)]
            for pixels in (self, other)
        ]
        same = all(abs(mine - theirs) < SAME * max(1.0, abs(theirs)) for mine, theirs in zip(*ends, strict=True))
        return same and self.order == other.order

    @property
    def _mean(self) -> list[float]:
        return [value / self.scale for value in self.mean]

    @property
    def _std(self) -> list[float]:
        return [value / self.scale for value in self.std]

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What bytes are multiplied by, and what is then subtracted: two tensors [3,1,1]."""
        std = torch.tensor(self.std, device=device)[:, None, None]
        mean = torch.tensor(self.mean, device=device)[:, None, None]
        return 1 / (255 / self.scale * std), mean / std

    def normalised(self, image: Tensor, factors: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Images as the network takes them.

        Args:
            image: uint8 [...,3,H,W], RGB.
            factors: Of the device that the image is on, if they are at hand.

        Returns:
            float32 [...,3,H,W].
        """
        scale, shift = factors or self.factors(image.device)
        ordered = image.flip(-3) if self.order == "bgr" else image
        if not image.is_cpu or image.ndim < 4:
            return ordered.to(torch.float32).mul_(scale).sub_(shift)
        # Image by image, so that each step finds in the cache what the one before it has written.
        floats = torch.empty_like(ordered, dtype=torch.float32)
        for each, target in zip(ordered.flatten(0, -4), floats.flatten(0, -4), strict=True):
            target.copy_(each).mul_(scale).sub_(shift)
        return floats

    def picture(self, image: Tensor) -> np.ndarray:
        """A normalised image as people look at it.

        Args:
            image: [3,H,W].

        Returns:
            uint8 [H,W,3], RGB.
        """
        values = image.float().permute(1, 2, 0).cpu().numpy() * self.std + self.mean
        pixels = (255 / self.scale * values).round().clip(0, 255).astype(np.uint8)
        return pixels[..., ::-1] if self.order == "bgr" else pixels

    def __str__(self) -> str:
        text = f"{self.order.upper()} 0..{self.scale:g}"
        text += f" less {_shown(self.mean)}" if any(self.mean) else ""
        text += f" over {_shown(self.std)}" if set(self.std) != {1.0} else ""
        text += f", {self.size[0]}x{self.size[1]}" if self.size else ""
        return text + (f", {self.interpolation}" if self.interpolation else "")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(values: Any) -> str:
    if not isinstance(values, tuple | list):
        return repr(values)
    return f"({', '.join(f'{value:g}' if _finite(value) else repr(value) for value in values)})"
