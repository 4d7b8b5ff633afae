"""CTAugment: strong augmentation whose strengths follow from what the network still recognises.

Reference: "ReMixMatch", arXiv 1911.09785, section 3.3, and "FixMatch", arXiv 2001.07685, section 2.3 and appendix D,
with FixMatch's published code.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import albumentations as A
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from typing_extensions import override

from datamodules.errors import OptionError
from datamodules.transforms.pipeline import Augmentation, SampleRandom

# Values that a parameter is divided into.
_BINS, _BITS = 17, 8
_FILTERS = (
    *(Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR),
    *(Image.Resampling.BOX, Image.Resampling.HAMMING, Image.Resampling.NEAREST),
)
# By the name of an operation, the bins of each of its parameters; in the order of the published code.
OPERATIONS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("AutoContrast", "Blur", "Brightness", "Color", "Contrast", "Cutout", "Equalize"), (_BINS,)),
    "Invert": (_BINS,),
    "Identity": (),
    "Posterize": (_BITS,),
    "Rescale": (_BINS, len(_FILTERS)),
    **dict.fromkeys(("Rotate", "Sharpness", "ShearX", "ShearY", "Smooth", "Solarize"), (_BINS,)),
    **dict.fromkeys(("TranslateX", "TranslateY"), (_BINS,)),
}
_NAMES = list(OPERATIONS)
_SIZES = list(itertools.chain(*OPERATIONS.values()))
# Where the bins of each parameter begin among those of all.
_FIRST = dict(zip(_NAMES, itertools.accumulate(map(sum, OPERATIONS.values()), initial=0), strict=False))
NUM_BINS = sum(_SIZES)
# Most parameters of an operation.
_PARAMETERS = max(map(len, OPERATIONS.values()))

_BLENDED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
    "Blur": lambda image: image.filter(ImageFilter.BLUR),
    "Smooth": lambda image: image.filter(ImageFilter.SMOOTH),
}
_ENHANCEMENTS = {
    "Brightness": ImageEnhance.Brightness,
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Sharpness": ImageEnhance.Sharpness,
}


def operate(image: Image.Image, name: str, values: Sequence[float], draw: Callable[[], float]) -> Image.Image:
    """An image after one operation.

    Args:
        image: RGB.
        name: One of `OPERATIONS`.
        values: Of each of its parameters, in [0, 1].
        draw: Gives random numbers in [0, 1), for the place of a cut-out.
    """
    if not values:
        return image
    v = values[0]
    if name in _BLENDED:
        return Image.blend(image, _BLENDED[name](image), v)
    if name in _ENHANCEMENTS:
        return _ENHANCEMENTS[name](image).enhance(0.1 + 1.9 * v)
    if name == "Cutout":
        return _cut_out(image, v, draw)
    if name == "Posterize":
        return ImageOps.posterize(image, 1 + int(v * 7.999))
    if name == "Rescale":
        width, height = image.size
        margin = v / 4
        box = (margin * width, margin * height, width * (1 - margin), height * (1 - margin))
        return image.crop(box).resize(image.size, _FILTERS[int(values[1] * 5.99)])
    if name == "Rotate":
        return image.rotate(round((2 * v - 1) * 45))
    if name == "Solarize":
        return ImageOps.solarize(image, int(v * 255.999))
    # Published shifts are of 0.3 pixels at most, where the paper says 0.3 of the image.
    amount = (2 * v - 1) * 0.3
    coefficients = {
        "ShearX": (1, amount, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, amount, 1, 0),
        "TranslateX": (1, 0, amount, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, amount),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)


def _cut_out(image: Image.Image, value: float, draw: Callable[[], float]) -> Image.Image:
    """An image with a grey square around a point in it, of at most half its side."""
    size = 1 + int(value * min(image.size) * 0.499)
    left, top = (int(draw() * side) - size // 2 for side in image.size)
    square = (max(0, left), max(0, top), left + size // 2 * 2, top + size // 2 * 2)
    image = image.copy()
    image.paste((127, 127, 127), (*square[:2], min(square[2], image.size[0]), min(square[3], image.size[1])))
    return image


class Rates:
    """How well the network recognises images after each bin of each operation: what all loaders of a run draw by.

    Those that are drawn by stay the same through an epoch, so that what is drawn is a function of (seed, epoch, index)
    and does not depend on how far loaders read ahead; workers see them in shared memory. Those that are learnt
    meanwhile take their place at the beginning of the next epoch.

    Args:
        decay: Share of a rate that stays when its bin is probed.

    Attributes:
        drawn: What is drawn by in this epoch, [NUM_BINS], in shared memory.
        learnt: What probes have made of it, [NUM_BINS], wherever the task has it.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay
        self.drawn = torch.ones(NUM_BINS, device="cpu").share_memory_()
        self.learnt = self.drawn.clone()
        self.epoch = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Rates:
        # Pipelines copy their transforms; all draw by the same rates.
        return self

    def begin(self, epoch: int) -> None:
        """Lets an epoch be drawn by what has been learnt; of an epoch that goes on nothing changes.

        Args:
            epoch: From 0.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self.drawn.copy_(self.learnt)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and both kinds of rates."""
        return {"epoch": self.epoch, "drawn": self.drawn.clone(), "learnt": self.learnt.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the rates that there were."""
        self.epoch, self.learnt = state["epoch"], state["learnt"].clone()
        self.drawn.copy_(state["drawn"])


class CTAugment(A.ImageOnlyTransform):
    """FixMatch's CTAugment: operations at strengths that the network still recognises, then the largest cut-out.

    For the strong view of `FewLabels`, whose labelled images then come with a probe each, which the rates are learnt
    from.

    Args:
        depth: Operations that are drawn, with repetition.
        threshold: Bins whose rate is below this share of the best of their parameter are not drawn.
        decay: Share of a rate that stays when its bin is probed.
        p: Probability of applying it to an image.

    Raises:
        OptionError: A threshold or a decay outside of [0, 1), or no operation.
    """

    def __init__(self, depth: int = 2, threshold: float = 0.8, decay: float = 0.99, p: float = 1.0) -> None:
        super().__init__(p=p)
        if depth < 1 or not 0.0 <= threshold < 1.0 or not 0.0 <= decay < 1.0:
            raise OptionError(
                f"depth={depth} must be at least 1, threshold={threshold} and decay={decay} from 0 to below 1."
            )
        self.depth, self.threshold = depth, threshold
        self.rates = Rates(decay)

    def weights(self, first: int, size: int) -> np.ndarray:
        """How often each bin of a parameter is drawn, relative to the best.

        Args:
            first: The parameter's first bin.
            size: Its bins.
        """
        rates = self.rates.drawn.numpy()[first : first + size].astype(np.float64) + (1 - self.rates.decay)
        rates = rates / rates.max()
        return np.where(rates < self.threshold, 0.0, rates)

    @override
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        image, draw = Image.fromarray(img), self.py_random.random
        for _ in range(self.depth):
            name = _NAMES[int(draw() * len(_NAMES))]
            first, values = _FIRST[name], []
            for size in OPERATIONS[name]:
                summed = self.weights(first, size).cumsum()
                drawn = int(np.searchsorted(summed, draw() * summed[-1], side="right"))
                values.append((min(drawn, size - 1) + draw()) / size)
                first += size
            image = operate(image, name, values, draw)
        return np.array(_cut_out(image, 1.0, draw))

    def probe(self, img: np.ndarray, draw: Callable[[], float]) -> tuple[np.ndarray, np.ndarray]:
        """An image after operations of any strength.

        Args:
            img: [H,W,3] uint8.
            draw: Gives random numbers in [0, 1).

        Returns:
            The image, and the bins that were used, int64 [depth * most parameters of an operation], -1 for none.
        """
        image, bins = Image.fromarray(img), np.full((self.depth, _PARAMETERS), -1)
        for used in bins:
            name = _NAMES[int(draw() * len(_NAMES))]
            first, values = _FIRST[name], []
            for place, size in enumerate(OPERATIONS[name]):
                values.append(draw())
                used[place] = first + int(values[-1] * size * 0.999)
                first += size
            image = operate(image, name, values, draw)
        return np.array(image), bins.flatten()


class Probed:
    """Adds to each sample of a pipeline a probe of its image: ``probe`` [H',W',3] and its bins, ``policy``.

    Args:
        pipeline: Makes the sample.
        augment: Makes the probe.
        seed: Of the probe's random numbers.
    """

    def __init__(self, pipeline: Augmentation, augment: CTAugment, seed: int) -> None:
        self.pipeline, self.augment, self.seed = pipeline, augment, seed
        self.random = SampleRandom()

    def __call__(self, sample: dict[str, Any], epoch: int, index: int) -> dict[str, Any]:
        """Transforms one sample and makes its probe; see `Pipeline`."""
        sample = self.pipeline(sample, epoch, index)
        self.random.seed(self.seed, epoch, index)
        generator: random.Random = self.random.python
        probe, policy = self.augment.probe(sample["image"], generator.random)
        return sample | {"probe": probe, "policy": policy}


def control_of(transforms: Sequence[Sequence[Any]]) -> CTAugment | None:
    """The CTAugment among the transforms of views; None without.

    Raises:
        OptionError: There are several, whose rates would be learnt from the same probes.
    """
    found = {id(each): each for own in transforms for each in own if isinstance(each, CTAugment)}
    if len(found) > 1:
        raise OptionError("views: name CTAugment once; a view of it with copies: 2 makes two.")
    return next(iter(found.values()), None)
