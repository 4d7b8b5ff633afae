"""Files that other programs run: what is in them, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import exp
from exp.__main__ import main
from exp.exporting import comparing
from exp.exporting.formats import OnnxFile, TorchFile
from tests.library.short_run import RUN, fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a classifier of digits has been trained, and exported as ONNX."""
    path = tmp_path_factory.mktemp("export")
    ended = fit(path)
    assert ended.code == 0, ended.output
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["export", str(RUN)]) == 0
    return path


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_an_onnx_file_takes_bytes_and_says_its_classes(folder: Path) -> None:
    path = folder / RUN / "export" / "model.onnx"
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].name == "image"
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    properties = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert json.loads(properties["class_names"]) == [str(digit) for digit in range(10)]
    # Other numbers and sizes than those of the example, against the network as exp loads it.
    model = exp.load(RUN)
    for batch, height, width in ((1, 32, 32), (5, 40, 48)):
        images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
        (logits,) = session.run(None, {"image": images.numpy().astype(np.float32)})
        with torch.no_grad():
            expected = model.network(model.pixels.normalised(images))
        assert torch.allclose(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def test_a_torch_program_says_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(RUN), "--format=torch", "--output=mine.pt2"]) == 0
    said = capsys.readouterr().out
    assert "largest relative difference" in said
    assert "images of the validation split" in said
    assert "of 8x8 pixels, any number of them" in said
    images = torch.rand(3, 3, 8, 8) * 255
    torch_file, onnx_file = TorchFile(Path("mine.pt2")), OnnxFile(RUN / "export" / "model.onnx")
    assert torch_file.manifest == dataclasses.replace(onnx_file.manifest, size=(8, 8))
    assert torch.allclose(torch_file(images)["logits"], onnx_file(images)["logits"], atol=1e-4)


def test_a_file_that_says_something_else_is_not_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = comparing.TOLERANCE
    ask = TorchFile.run
    monkeypatch.setattr(TorchFile, "run", lambda self, images: [(1 + 2 * right) * each for each in ask(self, images)])
    assert main(["export", str(RUN), "--format=torch", "--output=wrong/wrong.pt2"]) == 1
    assert "its logits differ by 2.0e-03" in capsys.readouterr().err
    assert not list(Path("wrong").iterdir())


def test_noise_is_what_rounding_alone_changes() -> None:
    class Cancelling(torch.nn.Module):
        """Loses the digits of an image that do not fit beside a large number."""

        def __init__(self, large: float) -> None:
            super().__init__()
            self.large = torch.nn.Parameter(torch.tensor(large))

        def answer(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"rest": (self.large + images) - self.large}

    images = [torch.linspace(0, 1, 48).view(1, 3, 4, 4)]
    for large, least, most in ((1.0, 1e-3, 1e-3), (4e4, 2e-3, 5e-3), (1e7, 1e-2, 1e-2)):
        found = comparing.tolerances(Cancelling(large), images, {"rest": 2e-3})  # type: ignore[arg-type]
        assert least <= found["rest"] <= most
    # What differs little needs no second look.
    assert comparing.tolerances(Cancelling(1e7), images, {"rest": 1e-4}) == {"rest": 1e-3}  # type: ignore[arg-type]


def test_objects_are_compared_with_their_partners() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 0, 40, 30], [50, 5, 50, 5]]])
    labels, scores = torch.tensor([[1, 1, 2, 0]]), torch.tensor([[0.9, 0.5, 0.50001, 0.3]])
    masks = torch.zeros(1, 4, 8, 8, dtype=torch.bool)
    masks[0, 0, :4], masks[0, 2, 4:] = True, True
    wanted = {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}

    def differences(**changed: torch.Tensor) -> dict[str, float]:
        return comparing.compare(lambda _: wanted, lambda _: wanted | changed, [torch.zeros(1, 3, 8, 8)])

    same = dict.fromkeys(wanted, 0.0)
    order = torch.tensor([3, 2, 1, 0])
    assert differences(**{name: each[:, order] for name, each in wanted.items()}) == same
    # One of four has another label: it and what it stood for are alone.
    assert differences(labels=torch.tensor([[1, 1, 3, 0]])) == same | {"labels": 0.25}
    # One is missing, of seven on both sides.
    assert differences(**{name: each[:, :3] for name, each in wanted.items()}) == same | {"labels": 1 / 7}
    assert differences(**{name: each[:, :0] for name, each in wanted.items()}) == same | {"labels": 1.0}
    assert differences(scores=scores + torch.tensor([0, 0, 0.09, 0]))["scores"] == pytest.approx(0.1)
    assert differences(boxes=boxes + torch.tensor([0.0, 0, 0.5, 0]))["boxes"] == pytest.approx(0.5 / 40)
    assert differences(masks=~masks)["masks"] == 1.0
    assert differences(scores=scores * torch.nan)["scores"] == torch.inf
    assert differences(boxes=boxes * torch.nan)["labels"] == 1.0


def test_what_cannot_be_exported_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Stubborn(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.sum().item() > 0)

    from datamodules import Pixels
    from exp.exporting.graph import Portable, trace
    from lightning_modules import Classification
    from models.mistakes import Mistake

    network = torch.nn.Sequential(torch.nn.Flatten(), Stubborn(), torch.nn.LazyLinear(4))
    network(torch.zeros(1, 3, 8, 8))
    module = Portable(Classification(network, 4), Pixels((0.0,) * 3, (1.0,) * 3))
    with pytest.raises(Mistake, match=r"^network\.1 \(Stubborn\) cannot be exported: "):
        trace(module, torch.zeros(1, 3, 8, 8), any_size=False)
    with pytest.raises(SystemExit):
        main(["export", str(RUN), "--output=mine.pt"])
    assert "a file of format onnx ends in .onnx" in capsys.readouterr().err
