"""Images per second and core, from JPEG files to a normalised batch: this project against torchvision.

    python -m benchmarks.image_pipeline --data ../shared/data/photos

Both read the same files, crop (RandomResizedCrop to 224x224), flip and make batches, side by side in one process with
one thread. torchvision normalises each image; here the batch stays bytes and is normalised on the device, which takes
no time of the core that loads when the device is a GPU ("bytes") and does when it is the same core ("floats"). Both are
measured once more with the images that ``exp data pack`` keeps for crops of 224, made beforehand. Repeats
alternate, time is CPU time, and a ratio is the median of the repeats' ratios. The last lines say what decoding a crop
at reduced scale does to its pixels, against the same crop of the fully decoded image.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from datamodules import ImageFolder
from datamodules.decoding import Encoded
from datamodules.jpeg import decode_region, read_header, reduction
from datamodules.packing import pack
from datamodules.transforms.resizing import resize

SIZE = 224
# What `exp data pack` makes for that size.
SIDE, QUALITY = 256, 90


def compose_photographs(root: Path, count: int, width: int, height: int) -> None:
    """Writes JPEGs with edges, gradients, texture and noise, as one image folder.

    Args:
        root: Folder that gets ``train/<class>/<image>``.
        count: Number of files.
        width: Columns of each.
        height: Rows of each.
    """
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (height // 100 + 2, width // 100 + 2, 3), np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        fine = random.normal(0, 12, (height // 4 + 1, width // 4 + 1, 3)).astype(np.float32)
        picture += cv2.resize(fine, (width, height)) + random.normal(0, 3, (height, width, 3))
        for _ in range(30):
            centre = (int(random.integers(width)), int(random.integers(height)))
            colour = tuple(int(value) for value in random.integers(0, 256, 3))
            cv2.circle(picture, centre, int(random.integers(10, height // 5)), colour, int(random.integers(2, 12)))
        folder = root / "train" / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)


def peer_loader(root: Path, batch: int) -> DataLoader:
    """torchvision's ImageFolder and transforms in torch's loader."""
    steps = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(ImageFolder.mean, ImageFolder.std),
        ]
    )
    files = datasets.ImageFolder(str(root / "train"), steps)
    return DataLoader(files, batch, shuffle=True, drop_last=True)


def images_per_cpu_second(batches: Iterable) -> float:
    """Throughput of one pass: images over the CPU time of this process, which other programs do not add to."""
    start, images = time.process_time(), 0
    for batch in batches:
        images += len(batch["image"] if isinstance(batch, dict) else batch[0])
    return images / (time.process_time() - start)


def compare(root: Path, batch: int, repeats: int) -> None:
    """Prints the throughput of torchvision, and of this project with batches of bytes and of normalised floats."""
    data = ImageFolder(root, batch_size=batch, holdout=0)
    peer = peer_loader(root, batch)
    with tempfile.TemporaryDirectory() as packed:
        for _ in pack(data.source("train"), Path(packed), "train", SIDE, QUALITY):
            pass
        smaller = ImageFolder(root, batch_size=batch, holdout=0, packed=packed)
        loaders = [data.train_dataloader(), smaller.train_dataloader()]
        speeds: list[list[float]] = []
        for repeat in range(repeats + 1):
            own = []
            for ours in loaders:
                ours.set_epoch(repeat)
                own.append(images_per_cpu_second(ours))
                own.append(images_per_cpu_second(data.on_after_batch_transfer(batch, 0) for batch in ours))
            if repeat:  # the first pass reads the files from disk
                speeds.append([images_per_cpu_second(peer), *own])
    theirs, *own = (statistics.median(column) for column in zip(*speeds, strict=True))
    print(f"torchvision: {theirs:.0f} images per second and core")
    for position, name in enumerate(("bytes", "floats", "bytes, packed", "floats, packed")):
        ratios = sorted(speed[position + 1] / speed[0] for speed in speeds)
        print(
            f"here, batches of {name}: {own[position]:.0f}, ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {repeats} repeats)"
        )


def compare_quality(files: list[Path], size: int, crops: int) -> None:
    """Prints how far crops decoded at reduced scale are from the same crops decoded whole."""
    draw = A.RandomResizedCrop((size, size))
    draw.set_random_seed(0)
    differences: dict[int, list[tuple[float, float]]] = {}
    for file in files:
        data = file.read_bytes()
        header = read_header(data)
        whole = Encoded(data).decode()
        for _ in range(crops):
            shape = (header.height, header.width, 3)
            left, top, right, bottom = draw.get_params_dependent_on_data({"shape": shape}, {})["crop_coords"]
            scale = reduction(bottom - top, right - left, size, size)
            if scale == 1:
                continue
            top, left = top // scale * scale, left // scale * scale
            bottom, right = bottom // scale * scale, right // scale * scale
            reduced = resize(decode_region(data, header, (left, top, right, bottom), scale), size, size)
            error = reduced.astype(float) - resize(whole[top:bottom, left:right], size, size)
            noise = 10 * np.log10(255**2 / max((error**2).mean(), 1e-9))
            differences.setdefault(scale, []).append((float(np.abs(error).mean()), float(noise)))
    for scale, values in sorted(differences.items()):
        absolute, noise = (statistics.median(column) for column in zip(*values, strict=True))
        worst = min(noise for _, noise in values)
        print(
            f"crops to {size}x{size} decoded at 1/{scale}: {len(values)}, mean absolute difference {absolute:.2f} of "
            f"255, PSNR {noise:.1f} dB (worst {worst:.1f})"
        )


def main() -> None:
    """Parses the arguments and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="image folder with train/; without it, JPEGs are composed")
    parser.add_argument("--repeats", type=int, default=9, help="measured passes of each pipeline")
    parser.add_argument("--batch", type=int, default=32, help="images of one batch")
    parser.add_argument("--composed", type=int, nargs=2, default=(1600, 1200), help="width and height without --data")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or Path(folder)
        if options.data is None:
            compose_photographs(root, 64, *options.composed)
        files = sorted(file for file in (root / "train").rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
        compare(root, options.batch, options.repeats)
        for size in (SIZE, SIZE // 2, SIZE // 4):
            compare_quality(files[:50], size, crops=4)


if __name__ == "__main__":
    main()
