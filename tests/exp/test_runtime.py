"""A file in the place of a network: what a task is told is what the network would have said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import Pixels
from exp.__main__ import main
from exp.exporting.formats import Manifest
from exp.exporting.graph import Normalisation, Portable
from exp.exporting.runtime import FileNetwork, put
from lightning_modules import Classification, Detection, FixMatch, Segmentation
from models.mistakes import Mistake
from tests.library.official_networks import BUILD

PIXELS = Pixels((104.0, 117.0, 123.0), (57.5, 57.0, 58.0), order="bgr", scale=255.0)


def as_file(task: Any) -> FileNetwork:
    """The task's network behind what a file takes and says."""
    module = Portable(task, PIXELS).eval()
    manifest = Manifest("", [], [], None, task.answers_batches, PIXELS.plain(), {})

    def run(images: Tensor) -> dict[str, Tensor]:
        assert len(images) == 1 or manifest.any_batch
        return module.answer(images)

    run.manifest = manifest  # type: ignore[attr-defined]
    return FileNetwork(run, task)  # type: ignore[arg-type]


def test_values_go_there_and_back() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    normalisation = Normalisation(PIXELS)
    assert torch.allclose(normalisation(images.float()), PIXELS.normalised(images), atol=1e-6)
    assert torch.allclose(normalisation.undone(PIXELS.normalised(images)), images.float(), atol=1e-3)


@pytest.mark.parametrize("name", ["smca/type1", "detr/masks", "solq", "torchvision_detectors/retinanet"])
def test_objects_are_in_pixels_of_the_original_images(name: str) -> None:
    torch.manual_seed(0)
    network: Any = BUILD[name]().eval()
    network.score_threshold = 0.01
    images = [torch.randn(3, 64, 64), torch.randn(3, 96, 64)]
    targets = [{"original_size": (128, 32)}, {"original_size": (96, 64)}]
    with torch.no_grad():
        # One by one, as padding is nothing that a file knows of.
        wanted = [network([image], [target])[0] for image, target in zip(images, targets, strict=True)]
        found = as_file(Detection(network, 5))(images, targets)
    for mine, theirs in zip(found, wanted, strict=True):
        assert len(theirs["boxes"]) > 0
        assert mine.keys() == theirs.keys()
        assert torch.equal(mine["labels"], theirs["labels"])
        assert torch.allclose(mine["boxes"], theirs["boxes"], atol=1e-2)
        assert torch.allclose(mine["scores"], theirs["scores"], atol=1e-4)
        if "masks" in theirs:
            assert mine["masks"].shape == theirs["masks"].shape
            assert mine["masks"].dtype == torch.bool
    if "masks" in wanted[1]:
        # Of the image that was not resized.
        assert (found[1]["masks"] != wanted[1]["masks"]).float().mean() < 1e-3


@pytest.mark.parametrize(("name", "kind"), [("ranet", Classification), ("hrnet/segmenter", Segmentation)])
def test_exits_and_maps_come_back_as_the_network_returns_them(name: str, kind: Any) -> None:
    torch.manual_seed(0)
    network = BUILD[name]().eval()
    side = 32 if kind is Classification else 64
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        wanted, found = network(images), as_file(kind(network, 10 if name == "ranet" else 5))(images)
    assert type(found) is type(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_two_networks_are_not_in_one_file() -> None:
    with pytest.raises(Mistake, match="FixMatch evaluates more than one network"):
        put(FixMatch(BUILD["fixmatch"]()), SimpleNamespace(path=Path("one.onnx")))  # type: ignore[arg-type]


def test_what_is_no_file_of_export_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("strange.onnx").write_bytes(b"nothing")
    for given, answer in (
        ("none.onnx", "--runtime none.onnx: no such file; `exp export RUN` writes one"),
        ("strange.onnx", "strange.onnx: onnxruntime cannot open it"),
        ("strange.txt", "a file of `exp export` ends in .onnx, .pt2"),
    ):
        Path("strange.txt").touch()
        with pytest.raises(SystemExit):
            main(["validate", "--runtime", given])
        assert answer in capsys.readouterr().err
