"""Stick figures in MPII's layout: pose estimation without any download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat
from typing_extensions import override

from datamodules.cache import write_once
from datamodules.errors import OptionError
from datamodules.mpii import JOINT_NAMES, LOWER, MPII, SKELETON
from datamodules.splits import Source
from datamodules.transforms.pipeline import Transform
from datamodules.transforms.pose import PIXELS, PersonCrop

# The data set is part of the task: it must not move with the run's seed.
FIGURE_SEED = 20260101
LAYOUT = "stick-figures-1"
JPEG_QUALITY = 95
CANVAS = 96
# Lengths, in heights of the figure.
SPINE, NECK, HEAD = 0.28, 0.05, 0.2
HIP, SHOULDER = 0.08, 0.14
THIGH, SHIN, UPPER_ARM, FOREARM = 0.24, 0.24, 0.17, 0.16
# Subpixel bits that OpenCV draws with.
SHIFT = 4


class StickFigures(MPII):
    """Coloured stick figures with random limbs on noise, seen from the front, one an image.

    Batch: as ``MPII``, of 64x64 pixels. The data set is written to the cache folder on first use.

    Args:
        batch_size: Figures of one batch over all processes.
        num_train: Training figures.
        num_val: Validation figures.
        num_workers: Loader processes for each process.
        options: Further options of ``DataModule``. By default figures are cut out at 64x64 pixels; those to train on
            are slightly scaled and turned, and mirrored.

    Raises:
        OptionError: If there are no figures.
    """

    def __init__(
        self,
        batch_size: int = 32,
        num_train: int = 1000,
        num_val: int = 200,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        if num_train < 1 or num_val < 1:
            raise OptionError(f"num_train={num_train} and num_val={num_val} must be at least 1.")
        # Given here, the layout that ``write`` writes is no option of the config.
        super().__init__(
            root="",
            batch_size=batch_size,
            images="images",
            train_annotations="annot/train.json",
            val_annotations="annot/valid.json",
            val_heads="annot/gt_valid.mat",
            num_workers=num_workers,
            **options,
        )
        self.counts = {"train": num_train, "val": num_val}

    @override
    def default_train_transforms(self) -> list[Transform]:
        return [PersonCrop((64, 64), sigma=1.0, scale=0.1, rotation=10.0, flip=0.5)]

    @override
    def default_eval_transforms(self) -> list[Transform]:
        return [PersonCrop((64, 64), sigma=1.0)]

    @override
    def open(self) -> dict[str, Source | None]:
        self.root = write_once("stick-figures", repr((LAYOUT, self.counts)), self.write, source="The stick figures")
        return super().open()

    def write(self, folder: Path) -> None:
        """Writes the data set in MPII's layout."""
        (folder / self.images).mkdir()
        (folder / "annot").mkdir()
        for part, (split, count) in enumerate(self.counts.items()):
            records: list[dict[str, Any]] = []
            heads = np.empty((2, 2, count))
            for number in range(count):
                random = np.random.Generator(np.random.PCG64([FIGURE_SEED, part, number]))
                joints, height = figure(random)
                name = f"{split}_{number:05d}.jpg"
                picture = Image.fromarray(draw(joints, height, random))
                picture.save(folder / self.images / name, quality=JPEG_QUALITY, subsampling=0)
                # Published coordinates count from 1.
                heads[..., number] = 1 + (joints[8] + joints[9]) / 2 + np.array([[-1], [1]]) * HEAD * height / 2
                records.append(_record(name, joints + 1, height))
            (folder / self.files[split]).write_text(json.dumps(records))
            if split == "val":
                positions = np.stack([record["joints"] for record in records], 2)
                missing = np.zeros((len(JOINT_NAMES), count))
                truth = {"pos_gt_src": positions, "jnt_missing": missing, "headboxes_src": heads}
                savemat(folder / self.val_heads, truth, do_compression=True)


def figure(random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Joints of a figure of random size, place and limbs, all of them on the canvas.

    Args:
        random: Where its random numbers come from.

    Returns:
        x, y in pixels, from 0, float64 [16,2] in MPII's order, and its height in pixels.
    """
    height = random.uniform(48, 72)
    lean = random.normal(0, 0.12)
    joints = np.zeros((len(JOINT_NAMES), 2))
    up, across = _direction(np.pi + lean), _direction(np.pi / 2 + lean)
    joints[7] = SPINE * up
    joints[8] = joints[7] + NECK * up
    joints[9] = joints[8] + HEAD * _direction(np.pi + lean + random.normal(0, 0.1))
    # A figure that faces us has its right side on our left.
    for side, (ankle, knee, hip, wrist, elbow, shoulder) in ((-1, (0, 1, 2, 10, 11, 12)), (1, (5, 4, 3, 15, 14, 13))):
        joints[hip] = side * HIP * across
        joints[shoulder] = joints[7] + side * SHOULDER * across
        thigh, arm = random.uniform(0, 0.7), random.uniform(0.1, 2.4)
        joints[knee] = joints[hip] + THIGH * _direction(side * thigh + lean)
        joints[ankle] = joints[knee] + SHIN * _direction(side * (thigh - random.uniform(0, 0.6)) + lean)
        joints[elbow] = joints[shoulder] + UPPER_ARM * _direction(side * arm + lean)
        joints[wrist] = joints[elbow] + FOREARM * _direction(side * (arm + random.uniform(-0.9, 0.9)) + lean)
    joints *= height
    low, high = joints.min(0), joints.max(0)
    margin = 3.0
    return joints + random.uniform(margin - low, CANVAS - 1 - margin - high), height


def draw(joints: np.ndarray, height: float, random: np.random.Generator) -> np.ndarray:
    """A figure on noise, RGB uint8 [96,96,3].

    Args:
        joints: x, y in pixels, from 0, float64 [16,2]; see ``figure``.
        height: The figure's height in pixels.
        random: Where colours and noise come from.
    """
    picture = random.uniform(0, 70, (CANVAS, CANVAS, 3)).astype(np.float32)
    # Limbs of one colour: a mirrored figure must look like any other.
    colour = tuple(random.uniform(110, 220, 3).tolist())
    fixed = np.rint(joints * 2**SHIFT).astype(int)
    for one, other in SKELETON:
        if (one, other) != (8, 9):
            start, end = (tuple(fixed[joint].tolist()) for joint in (one, other))
            cv2.line(picture, start, end, colour, 2, cv2.LINE_AA, SHIFT)
    middle = tuple(((fixed[8] + fixed[9]) // 2).tolist())
    cv2.circle(picture, middle, int(HEAD / 2 * height * 2**SHIFT), colour, -1, cv2.LINE_AA, SHIFT)
    for joint in fixed:
        cv2.circle(picture, tuple(joint.tolist()), int(1.3 * 2**SHIFT), (255, 255, 255), -1, cv2.LINE_AA, SHIFT)
    return np.rint(picture).astype(np.uint8)


def _direction(angle: float) -> np.ndarray:
    """Unit vector so many radians from straight down, towards our right."""
    return np.array([np.sin(angle), np.cos(angle)])


def _record(name: str, joints: np.ndarray, height: float) -> dict[str, Any]:
    """A figure's annotation; joints count from 1."""
    scale = max(height, float(np.ptp(joints, 0).max())) / PIXELS
    middle = (joints.min(0) + joints.max(0)) / 2
    return {
        "image": name,
        # The crop is centred lower than the annotation says.
        "center": [float(middle[0]), float(middle[1] - LOWER * scale)],
        "scale": scale,
        "joints": joints.tolist(),
        "joints_vis": [1] * len(joints),
    }
