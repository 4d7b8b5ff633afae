"""Views of photographs per second and core, from JPEG files to normalised batches: here, torchvision and lightly.

    python -m benchmarks.views --data ../shared/data/photos

The augmentations are those of the recipes in configs/self_supervised: two views of MoCo v2 and of BYOL, and the ten
crops of DINO. torchvision's are its transforms v2 with the same numbers, written as in its documentation; lightly's are
`MoCoV2Transform`, `BYOLTransform` and `DINOTransform` with eight local crops. All read the same files and make
batches, in turn, in one process with one thread; what normalisation costs on the device counts here, too, as if the
device were the same core. Time is CPU time, and a ratio is the median of the repeats' ratios. Without --data, JPEGs of
500x375 and 1500x1000 are composed. lightly is in the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import torch
import yaml
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import InterpolationMode, v2

from benchmarks.image_pipeline import compose_photographs
from datamodules import ImageFolder, MultiView, View

try:
    from lightly.transforms import BYOLTransform, DINOTransform, MoCoV2Transform
except ImportError as error:
    raise SystemExit("this benchmark compares with lightly, which is not installed: pip install lightly") from error

RECIPES = {"moco_v2": "MoCo v2, two views", "byol": "BYOL, two views", "dino": "DINO, ten crops"}
COMPOSED = ((500, 375), (1500, 1000))
Transform = Callable[[Any], Any]


def recipe_views(name: str) -> list[View]:
    """The views of a recipe of configs/self_supervised."""
    config = Path(__file__).parents[1] / "configs/self_supervised" / f"{name}_imagenet1k.yaml"
    views = yaml.safe_load(config.read_text())["data"]["init_args"]["views"]
    return [View([_built(each) for each in view["transforms"]], view.get("copies", 1)) for view in views]


def _built(entry: dict[str, Any]) -> Any:
    module, _, name = entry["class_path"].rpartition(".")
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.get("init_args", {}).items()}
    return getattr(importlib.import_module(module), name)(**arguments)


def torchvision_view(
    scale: tuple[float, float],
    blur: float,
    size: int = 224,
    saturation: float = 0.2,
    solarize: float = 0.0,
    interpolation: InterpolationMode = InterpolationMode.BICUBIC,
) -> v2.Compose:
    """A view of the recipes in torchvision's transforms, from Pillow's image to a normalised tensor."""
    kernel = int(0.1 * size) // 2 * 2 + 1
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(size, scale, interpolation=interpolation),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, saturation, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p=blur),
            *([v2.RandomSolarize(128, solarize)] if solarize else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(ImageFolder.mean, ImageFolder.std),
        ]
    )


def torchvision_views(name: str) -> Transform:
    """All views of a recipe, of one image."""
    if name == "moco_v2":
        views = [torchvision_view((0.2, 1), 0.5, saturation=0.4, interpolation=InterpolationMode.BILINEAR)] * 2
    elif name == "byol":
        views = [torchvision_view((0.08, 1), 1.0), torchvision_view((0.08, 1), 0.1, solarize=0.2)]
    else:
        views = [torchvision_view((0.4, 1), 1.0), torchvision_view((0.4, 1), 0.1, solarize=0.2)]
        views += [torchvision_view((0.05, 0.4), 0.5, size=96)] * 8
    return lambda image: [view(image) for view in views]


def lightly_views(name: str) -> Transform:
    """The published transform of lightly for a recipe."""
    if name == "moco_v2":
        return MoCoV2Transform()
    return BYOLTransform() if name == "byol" else DINOTransform(n_local_views=8)


def peer_loader(root: Path, batch: int, transform: Transform) -> DataLoader:
    """torchvision's ImageFolder in torch's loader."""
    return DataLoader(datasets.ImageFolder(str(root / "train"), transform), batch, shuffle=True, drop_last=True)


def images_per_cpu_second(batches: Iterable[list[torch.Tensor]]) -> float:
    """Throughput of one pass: images over the CPU time of this process, which other programs do not add to."""
    start, images = time.process_time(), 0
    for views in batches:
        images += views[0].shape[-4]
    return images / (time.process_time() - start)


def compare(root: Path, recipe: str, batch: int, repeats: int) -> None:
    """Prints the throughput of a recipe: here, torchvision's and lightly's."""
    data = MultiView(ImageFolder(root, batch_size=batch, holdout=0), recipe_views(recipe))
    loader = data.train_dataloader()
    peers = {
        "torchvision": peer_loader(root, batch, torchvision_views(recipe)),
        "lightly": peer_loader(root, batch, lightly_views(recipe)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ("here", *peers)}
    for repeat in range(repeats + 1):
        loader.set_epoch(repeat)
        measured = {"here": images_per_cpu_second(data.on_after_batch_transfer(each, 0)["image"] for each in loader)}
        for name, peer in peers.items():
            measured[name] = images_per_cpu_second(views for views, _ in peer)
        if repeat:  # the first pass reads the files from disk
            for name, speed in measured.items():
                speeds[name].append(speed)
    print(f"  {RECIPES[recipe]}: {statistics.median(speeds['here']):.0f} images per second and core", end="")
    for name in peers:
        ratios = sorted(own / other for own, other in zip(speeds["here"], speeds[name], strict=True))
        print(
            f"; {name} {statistics.median(speeds[name]):.0f}, ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
            end="",
        )
    print(flush=True)


def main() -> None:
    """Parses the arguments and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="image folder with train/; without it, JPEGs are composed")
    parser.add_argument("--repeats", type=int, default=5, help="measured passes of each pipeline")
    parser.add_argument("--batch", type=int, default=32, help="images of one batch")
    parser.add_argument(
        "--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="which augmentations"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        roots = {str(options.data): options.data}
        if options.data is None:
            roots = {f"composed JPEGs of {w}x{h}": Path(folder, f"{w}x{h}") for w, h in COMPOSED}
            for root, size in zip(roots.values(), COMPOSED, strict=True):
                compose_photographs(root, options.batch, *size)
        for title, root in roots.items():
            print(title)
            for recipe in options.recipes:
                compare(root, recipe, options.batch, options.repeats)


if __name__ == "__main__":
    main()
