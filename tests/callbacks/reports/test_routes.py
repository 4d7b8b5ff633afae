"""Pictures and numbers of routes, against what a network runs for one image at a time."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from matplotlib.collections import LineCollection
from torch import nn

from callbacks.reports import Place, routes
from callbacks.reports.decisions import Decisions
from callbacks.reports.routes import Taken, route_use
from drawing.routes import RoutedImage, route_sheet
from lightning_modules import Segmentation
from lightning_modules.segmentation import SlidingWindow
from models.compute import executed
from models.decisions import noted
from models.segmenters.dynamic_routing import DynamicRouting
from models.segmenters.dynamic_routing_routes import TRANSFORMS, all_edges, common_route
from models.segmenters.inference import padded
from tests.library.reports import trainer_with
from tests.library.routed_networks import tiny, undecided
from tests.library.segmentation import CLASSES, Scenes


class Streets(Scenes):
    """Images that differ in contrast, so that they take different routes."""

    def __init__(self) -> None:
        super().__init__()
        self.images = self.images * torch.tensor([0.1, 3.0, 1.0, 0.3, 6.0]).view(-1, 1, 1, 1)


def run(folder: Path, command: str, module: Segmentation) -> tuple[Taken | None, dict[str, float]]:
    report = Decisions()
    report.place = Place(folder / "plots", folder)
    trainer = trainer_with(report, folder=folder, max_epochs=1)
    if command == "fit":
        trainer.fit(module, Streets())
    else:
        getattr(trainer, command)(module, Streets(), verbose=False)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    if not report.applies(module):
        return None, metrics
    painter = report._painters["route"]
    assert isinstance(painter, routes.Routes)
    return painter.taken, metrics


def edges(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_costs_are_those_of_each_image_alone(command: str, split: str, tmp_path: Path) -> None:
    network = undecided(num_classes=CLASSES)
    _, metrics = run(tmp_path, command, Segmentation(network))
    costs, opened = [], []
    for image in Streets().images:
        costs.append(executed(network, padded(image[None])).macs)
        opened.append(noted(network)[""].values[0] > 0)
    assert len(set(costs)) >= 3
    assert metrics[f"{split}/macs_min"] == pytest.approx(min(costs), rel=1e-6)
    assert metrics[f"{split}/macs_max"] == pytest.approx(max(costs), rel=1e-6)
    assert metrics[f"{split}/macs"] == pytest.approx(np.mean(costs), rel=1e-6)
    usage = torch.stack(opened).float().mean(0)
    assert metrics[f"{split}/open_share"] == pytest.approx(usage.sum().item() / len(all_edges(5)), rel=1e-5)
    rows = edges(tmp_path / "routes.csv")
    assert len(rows) == len(all_edges(5))
    assert {row["split"] for row in rows} == {split}
    for row in rows:
        share = usage[int(row["layer"]), int(row["level"]), TRANSFORMS.index(row["transform"])].item()
        assert float(row["share_open"]) == pytest.approx(share, abs=1e-4)
        assert (row["mean_weight"] == "") == (share == 0)
    assert (tmp_path / "plots/routes.png").stat().st_size > 20_000
    # A route is not chosen on the test split.
    assert (tmp_path / "common_route.yaml").is_file() == (split == "val")
    if split == "val":
        config = yaml.safe_load((tmp_path / "common_route.yaml").read_text())
        options = config["model"]["init_args"]["network"]["init_args"]
        fixed = tiny(num_classes=CLASSES, **options)
        assert [tuple(edge) for edge in options["route"]] == common_route(usage)
        assert not fixed.dynamic


def test_fit_draws_its_last_validation(tmp_path: Path) -> None:
    taken, metrics = run(tmp_path, "fit", Segmentation(tiny(num_classes=CLASSES)))
    assert metrics["val/macs_min"] <= metrics["val/macs"] <= metrics["val/macs_max"]
    assert taken is not None
    assert taken.index == list(range(5))
    assert {path.name for path in tmp_path.iterdir()} == {"plots", "routes.csv", "common_route.yaml"}


def test_a_fixed_route_is_drawn_and_no_more(tmp_path: Path) -> None:
    network = tiny(num_classes=CLASSES, route="unet")
    taken, metrics = run(tmp_path, "validate", Segmentation(network))
    assert [path.name for path in tmp_path.rglob("*.*")] == ["routes.png"]
    assert "val/macs_min" not in metrics
    assert taken is not None
    ran = executed(network, padded(Streets().images)).macs
    assert taken.macs.tolist() == [ran] * 5
    assert taken.use().open_share == 1


@pytest.mark.parametrize("options", [{"sliding_window": SlidingWindow((32, 32), (16, 16))}, {"compile": True}])
def test_routes_that_are_not_those_of_the_images_are_left_alone(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda module: None)
    monkeypatch.setattr(DynamicRouting, "refuses_compile", None)
    taken, metrics = run(tmp_path, "validate", Segmentation(tiny(num_classes=CLASSES), **options))
    assert taken is None
    assert "val/macs_min" not in metrics
    assert not list(tmp_path.iterdir())


def test_routes_of_all_processes_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    network = undecided(num_classes=CLASSES)
    report: Any = SimpleNamespace(split="val", task=SimpleNamespace(network=network))
    first, second = routes.Routes(report), routes.Routes(report)
    images = padded(Streets().images)
    for painter, indices in ((first, [3, 0]), (second, [4, 1, 2])):
        with torch.no_grad():
            network(images[indices])
        painter.keep(noted(network), {"index": torch.tensor(indices)}, None)
    given: list[Any] = []
    monkeypatch.setattr(routes, "gathered", lambda own: given.append(own) or [own])
    second.merge()
    monkeypatch.setattr(routes, "gathered", lambda own: [own, *given])
    first.merge()
    assert first.taken is not None
    assert first.taken.index == list(range(5))
    costs = [executed(network, image[None]).macs for image in images]
    assert first.taken.macs.tolist() == costs
    assert first.metrics()["macs_max"] == max(costs)


def test_no_common_route_where_the_way_is_closed(tmp_path: Path) -> None:
    network = tiny(num_classes=CLASSES)
    for _, _, cell in network.cells():
        assert cell.gate is not None
        nn.init.constant_(cell.gate.score.bias, -100.0)  # type: ignore[arg-type]
    (tmp_path / "common_route.yaml").write_text("of another validation")
    with pytest.warns(UserWarning, match=r"no common_route\.yaml: .* no path from the initial cell"):
        taken, metrics = run(tmp_path, "validate", Segmentation(network))
    assert not (tmp_path / "common_route.yaml").exists()
    assert metrics["val/open_share"] == 0
    assert taken is not None
    # The stem, the gates of the finest level, and the decoder.
    assert taken.macs.tolist() == [executed(network, padded(Streets().images)).macs] * 5
    use = taken.use()
    # The stem's maps are handed on at the finest level, and nothing is computed.
    assert use.kept.nonzero()[1].tolist() == [0] * 6
    assert not use.cells.any()


def test_lines_are_as_wide_as_their_share(tmp_path: Path) -> None:
    network = DynamicRouting(3, 3, 2)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    grid = noted(network)[""].grid
    assert grid is not None
    gates = torch.zeros(2, 4, 4, 3)
    gates[:, :, 0, 0] = 0.5
    gates[1, 0, 0, 2] = gates[1, 1:, 1, 0] = 0.9
    # Nothing reaches this cell.
    gates[0, 2, 2, 0] = 0.7
    use = route_use(gates, grid)
    assert use.share[0, 0].tolist() == [1, 0, 0.5]
    assert use.share[2, 2].tolist() == [0, 0, 0]
    assert use.weight[0, 0, 2] == pytest.approx(0.9)
    assert use.cells[1].tolist() == [1, 0.5, 0, 0]
    figure = route_sheet("x", [RoutedImage(np.zeros((8, 8, 3), np.uint8), "one", route_use(gates[:1], grid))], use)
    average = figure.axes[0]
    closed, opened, kept = (each for each in average.collections if isinstance(each, LineCollection))
    assert len(closed.get_segments()) + len(opened.get_segments()) == len(all_edges(3))
    widths = np.asarray(opened.get_linewidths())
    assert sorted(set(widths.round(3))) == [1.9, 3.2]
    assert len(widths) == 8
    # The second image's cell of stride 8 is open; the first one's gets zeros and has nothing to pass on.
    assert not len(kept.get_segments())
    assert figure.axes[1].get_title(loc="left") == "one"
