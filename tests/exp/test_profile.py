import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from exp.profile import main, profile
from lightning_modules import Classification
from models.compute import count


@pytest.fixture
def network() -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=3)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> list[str]:
    """What the config parser was asked for; it always builds the same network."""
    asked: list[str] = []

    class Cli:
        def __init__(self, argv: list[str], command: str) -> None:
            asked.extend(argv)
            self.model = Classification(network)
            self.datamodule = SimpleNamespace(example=lambda samples: {"image": torch.randn(samples, 3, 64, 64)})

    monkeypatch.setitem(sys.modules, "exp.cli", SimpleNamespace(Cli=Cli))
    return asked


def test_report(network: nn.Module) -> None:
    report = profile(network, (torch.randn(2, 3, 64, 64),), seconds=0)
    assert report.dense == count(network, (3, 64, 64))
    assert report.executed.macs == report.dense.macs
    assert report.runs == 10
    assert 0 < report.latency_median <= report.latency_p95
    assert report.images_per_second == 2 / report.latency_median
    held = 4 * (report.dense.params + 2 * 3 * 64 * 64)
    # Beside weights and images, at least the inside of the first block is alive: four times its width.
    assert held + 4 * 2 * 16 * 16 * 16 < report.peak_memory < 2 * held
    assert network.training


def test_a_detector_is_profiled_with_its_targets() -> None:
    seen = []

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> list[Tensor]:
            seen.append(targets[0]["original_size"])
            return [self.layer(image.flatten(1).mean(1)) for image in images]

    inputs = ([torch.randn(3, 8, 8)] * 2, [{"original_size": (16, 16)}] * 2)
    report = profile(Detector(), inputs, seconds=0)
    assert report.dense.macs == report.executed.macs == 6
    assert (report.batch_size, report.input_size) == (2, (3, 8, 8))
    assert set(seen) == {(16, 16)}


def test_table(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "a.yaml", "--depth", "1", "--seconds", "0", "--device", "cpu", "--model.lr", "3"]
    assert main(arguments) == 0
    assert asked == ["--config", "a.yaml", "--model.lr", "3"]
    printed = capsys.readouterr().out
    for text in ("parameters", "multiply-adds", "executed", "p95", "images/s", "MiB", "stages", "1 x 3 x 64 x 64"):
        assert text in printed
    assert "stages.0" not in printed


def test_json(asked: list[str], network: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--batch_size", "2", "--input_size", "3", "32", "32", "--seconds", "0", "--device", "cpu"]
    assert main(["--config", "a.yaml", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["input_size"] == [3, 32, 32]
    assert report["batch_size"] == 2
    assert report["dense"]["conv_macs"] == count(network, (3, 32, 32)).conv_macs
    assert {module["name"] for module in report["executed"]["modules"]} >= {"", "stem.0", "stages.3.blocks.0.mlp.fc1"}


def test_impossible_sizes_are_refused(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--batch_size", "0"])
    assert "0 is not a positive number" in capsys.readouterr().err
