"""Images per second and core, from a COCO folder to training batches: this project against torchvision.

    python -m benchmarks.coco_pipeline --data ../shared/data/coco128

Both read the same files and do DETR's augmentation to images, boxes and masks (flip; shorter side to 480..800, or a
resize to 400..600, a crop of 384..600 and that resize) in one process with one thread. The peer is CocoDetection with
`wrap_dataset_for_transforms_v2` and transforms v2, on Pillow images and on tensors. It normalises each image; here
batches stay bytes and are normalised on the device ("bytes"), which is timed on the same core, too ("floats"). Repeats
alternate, time is CPU time, and a ratio is the median of the repeats' ratios.

    python -m benchmarks.coco_pipeline --startup 118000

writes an annotation file of that many images (7.3 objects each, with polygons), and prints seconds and peak memory of
the first and the second start on it, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from datamodules import Coco
from datamodules.coco_annotations import Annotations

SIZES = list(range(480, 801, 32))
OBJECTS, POINTS = 7.3, 22


class PeerCrop(v2.Transform):
    """DETR's crop, which torchvision lacks."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        """Draws the window."""
        height, width = functional.get_size(flat_inputs[0])
        rows, columns = (random.randint(min(384, side), min(600, side)) for side in (height, width))
        top, left = random.randint(0, height - rows), random.randint(0, width - columns)
        return {"top": top, "left": left, "height": rows, "width": columns}

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        """Crops an image, its boxes or its masks."""
        return functional.crop(inpt, **params)


def peer_loader(root: Path, images: str, batch: int, tensors: bool) -> DataLoader:
    """torchvision's COCO and transforms in torch's loader."""
    resize = v2.RandomShortestSize(SIZES, max_size=1333)
    crop = v2.Compose([v2.RandomShortestSize([400, 500, 600]), PeerCrop(), resize])
    geometry = [v2.RandomHorizontalFlip(), v2.RandomChoice([resize, crop])]
    steps = [
        *([v2.ToImage(), *geometry] if tensors else [*geometry, v2.ToImage()]),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(Coco.mean, Coco.std),
        v2.SanitizeBoundingBoxes(),
    ]
    data = CocoDetection(images, str(root / "annotations/instances_train2017.json"), transforms=v2.Compose(steps))
    data.ids = [image for image in data.ids if data.coco.getAnnIds(image, iscrowd=False)]
    wrapped = wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels", "masks"))
    return DataLoader(
        wrapped, batch, shuffle=True, drop_last=True, collate_fn=lambda batch: list(zip(*batch, strict=True))
    )


def images_per_cpu_second(batches: Iterable) -> float:
    """Throughput of one pass: images over the CPU time of this process, which other programs do not add to."""
    start, images = time.process_time(), 0
    for batch in batches:
        images += len(batch["image"] if isinstance(batch, dict) else batch[0])
    return images / (time.process_time() - start)


def compare(root: Path, batch: int, repeats: int) -> None:
    """Prints the throughput of torchvision, and of this project with batches of bytes and of normalised floats."""
    data = Coco(root, batch_size=batch, keep_empty=False, num_workers=0, on_bad_sample="skip")
    ours = data.train_dataloader()
    folder = str(Path(data.sample_name("train", 0)).parent)
    peers = {name: peer_loader(root, folder, batch, name == "tensors") for name in ("Pillow images", "tensors")}
    speeds: list[dict[str, float]] = []
    for repeat in range(repeats + 1):
        ours.set_epoch(repeat)
        speed = {name: images_per_cpu_second(peer) for name, peer in peers.items()}
        speed["bytes"] = images_per_cpu_second(ours)
        speed["floats"] = images_per_cpu_second(data.on_after_batch_transfer(batch, 0) for batch in ours)
        if repeat:  # the first pass reads the files from disk
            speeds.append(speed)
    for name in peers:
        print(f"torchvision on {name}: {statistics.median(speed[name] for speed in speeds):.1f} images per CPU second")
    for own in ("bytes", "floats"):
        print(f"here, batches of {own}: {statistics.median(speed[own] for speed in speeds):.1f}")
        for name in peers:
            ratios = sorted(speed[own] / speed[name] for speed in speeds)
            spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {repeats} repeats)"
            print(f"  to torchvision on {name}: {statistics.median(ratios):.2f} {spread}")


def write_annotations(path: Path, num_images: int) -> int:
    """Writes an annotation file of COCO's proportions: 45 numbers a polygon, two decimals, 1.2 % crowds.

    Args:
        path: The file.
        num_images: Number of images.

    Returns:
        Number of annotations.
    """
    generator = np.random.default_rng(0)
    with path.open("w") as stream:
        stream.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for image in range(num_images):
            record = {"license": 3, "file_name": f"{image:012d}.jpg", "height": 480, "width": 640, "id": image}
            record["coco_url"] = f"http://images.cocodataset.org/train2017/{image:012d}.jpg"
            stream.write(("," if image else "") + json.dumps(record))
        stream.write('], "annotations": [')
        number = 0
        for image in range(num_images):
            for _ in range(generator.poisson(OBJECTS)):
                centre, radius = generator.uniform((0, 0), (640, 480)), generator.uniform(5, 100)
                angles = np.linspace(0, 2 * np.pi, int(generator.integers(POINTS // 2, POINTS * 2)), endpoint=False)
                points = (
                    centre
                    + radius * generator.uniform(0.7, 1, (len(angles), 1)) * np.c_[np.cos(angles), np.sin(angles)]
                )
                points = points.clip((0, 0), (640, 480)).round(2)
                low, high = points.min(0), points.max(0)
                record = {
                    "segmentation": [points.reshape(-1).tolist()],
                    "area": round(float(radius**2 * 2), 4),
                    "iscrowd": 0,
                    "image_id": image,
                    "bbox": [*low.tolist(), *(high - low).round(2).tolist()],
                    "category_id": int(generator.integers(1, 81)),
                    "id": number + 1,
                }
                if generator.uniform() < 0.012:
                    record |= {"iscrowd": 1, "segmentation": {"size": [480, 640], "counts": [1000, 640 * 480 - 1000]}}
                stream.write(("," if number else "") + json.dumps(record))
                number += 1
        categories = [{"supercategory": "thing", "id": label, "name": f"thing {label}"} for label in range(1, 81)]
        stream.write('], "categories": ' + json.dumps(categories) + "}")
    return number


def open_annotations(path: Path) -> None:
    """Prints seconds and peak memory of one start."""
    start, computing = time.perf_counter(), time.process_time()
    annotations = Annotations(path)
    seconds, computing = time.perf_counter() - start, time.process_time() - computing
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(f"{len(annotations):,} images in {seconds:.2f} s ({computing:.2f} s of CPU), peak {peak:.2f} GiB with torch")


def compare_startup(num_images: int) -> None:
    """Prints what the first and the second start cost."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        number = write_annotations(path, num_images)
        print(f"{num_images:,} images, {number:,} annotations, {path.stat().st_size / 1e6:.0f} MB", flush=True)
        command = [sys.executable, "-m", "benchmarks.coco_pipeline", "--open", str(path)]
        for name in ("first", "second"):
            print(f"{name} start: ", end="", flush=True)
            subprocess.run(command, check=True, env=os.environ | {"EXP_CACHE": folder})


def main() -> None:
    """Parses the arguments and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="COCO folder; its training split is read")
    parser.add_argument("--repeats", type=int, default=5, help="measured passes of each pipeline")
    parser.add_argument("--batch", type=int, default=16, help="images of one batch")
    parser.add_argument("--startup", type=int, metavar="IMAGES", help="size of the annotation file to start on")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        open_annotations(options.open)
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if options.data:
        compare(options.data, options.batch, options.repeats)
    if options.startup:
        compare_startup(options.startup)


if __name__ == "__main__":
    main()
