"""Which ways images take through the grid of Dynamic Routing, and what that costs each of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from callbacks.drawing import save
from callbacks.pictures import show
from callbacks.route_drawing import RoutedImage, RouteUse, readable, route_sheet
from lightning_modules.segmentation import Segmentation
from models.decisions import noted
from models.segmenters.dynamic_routing import DynamicRouting
from models.segmenters.dynamic_routing_flops import executed_macs
from models.segmenters.dynamic_routing_routes import TRANSFORMS, common_route
from models.segmenters.inference import DIVISOR


@dataclass(frozen=True)
class Routes:
    """The routes of images, in the order of their indices; on the CPU.

    Args:
        index: Of each image in its split [N].
        gates: [N, layers + 1, 4, 3].
        macs: Multiply-adds that ran for each [N], float64.
        exists: Edges of the network, bool [layers + 1, 4, 3].
    """

    index: list[int]
    gates: Tensor
    macs: Tensor
    exists: Tensor

    def use(self, place: int | None = None) -> RouteUse:
        """How all images use the grid, or the one at a place."""
        return RouteUse.of(self.gates if place is None else self.gates[place : place + 1], self.exists)


class RoutePictures(Callback):
    """Draws the routes of an evaluation of `DynamicRouting`; other networks it leaves alone.

    - `routes.png`: how many images take which edge of the grid and with which gate weight, over the whole split, and
      the routes of the first images with what each cost; of a fixed route only the grid;
    - `routes.csv`: a row for each edge, beside the run's metrics;
    - `common_route.yaml`: the fixed network of the edges that half of the validation images or more take, as a config
      to be added to that of the run (Common-A, -B and -C of arXiv 2003.10401).

    They are of `test`, `validate`, the last validation of a `fit` and the test that ends it; that test leaves
    `common_route.yaml` alone. Evaluation by windows or scales has several routes an image and is not looked at, nor is
    a compiled network, which computes everything.

    Logs, under `val/` and `test/`, `macs_min` and `macs_max`, the multiply-adds of the images that took least and most,
    and `open_share`, the share of the edges that are open, the mean over the images. A fixed route logs nothing.

    Args:
        folder: where the picture goes; None draws nothing.
        files: where the files go; None writes nothing.
        images: on `routes.png`.
    """

    def __init__(self, folder: Path | None = None, files: Path | None = None, images: int = 3) -> None:
        self.folder = folder
        self.files = files
        self.images = images
        # Index, height, width and gates of each image, in rows.
        self._rows: list[Tensor] = []
        # Of the last evaluation, on the first process.
        self.routes: Routes | None = None

    def _start(self) -> None:
        self._rows, self.routes = [], None

    def _keep(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        network = _network(pl_module)
        if network is None or trainer.sanity_checking:
            return
        height, width = (-(-side // DIVISOR) * DIVISOR for side in batch["image"].shape[-2:])
        # Indices are exact in float32, but not in what autocast may leave the gates in.
        gates = noted(network)[""].values.float().flatten(1)
        sizes = gates.new_tensor([height, width]).expand(len(gates), 2)
        self._rows.append(torch.cat([batch["index"].to(gates.dtype)[:, None], sizes, gates], 1))

    def _finish(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Gathers what was kept, on all processes, and logs."""
        network = _network(pl_module)
        if network is None or trainer.sanity_checking:
            return
        columns = 3 + len(network.layers) * network.body_macs.shape[1] * len(TRANSFORMS)
        rows = torch.cat([torch.empty(0, columns, device=pl_module.device), *self._rows])
        self._rows = []
        if trainer.world_size > 1:
            rows = torch.cat(gather_all_tensors(rows))
        if not len(rows):
            return
        self.routes = _routes(network, rows.cpu())
        if network.dynamic:
            macs, share = self.routes.macs, self.routes.use().open_share
            metrics = {"macs_min": macs.min().item(), "macs_max": macs.max().item(), "open_share": share}
            for name, value in metrics.items():
                # The same on all processes; Lightning asks for sync_dist all the same.
                pl_module.log(f"{split}/{name}", value, sync_dist=True)

    def _report(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        """Draws and writes."""
        network = _network(pl_module)
        if network is None or self.routes is None or not trainer.is_global_zero:
            return
        if self.folder is not None:
            self._draw(trainer, network, self.routes, split)
        if self.files is not None and network.dynamic:
            self.files.mkdir(parents=True, exist_ok=True)
            _write_edges(self.routes, split, self.files / "routes.csv")
            if split == "val":
                _write_common_route(self.routes, self.files / "common_route.yaml")

    def _draw(self, trainer: Trainer, network: DynamicRouting, routes: Routes, split: str) -> None:
        assert self.folder is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        use = routes.use()
        title = f"{split}: {readable(routes.macs.mean().item())} multiply-adds an image"
        shown: list[RoutedImage] = []
        if network.dynamic:
            title += (
                f" on average, least {readable(routes.macs.min().item())}, most {readable(routes.macs.max().item())}\n"
                f"{len(routes.index):,} images, {use.open_share:.1%} of the edges open"
            )
            for place, index in enumerate(routes.index[: self.images]):
                name = Path(data.sample_name(split, index)).name
                shown.append(routed_image(routes, place, name, data.raw_image(split, index)))
        figure = route_sheet(title, shown, use)
        show(trainer, f"{split}/routes", save(figure, self.folder / "routes.png"))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._start()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._start()

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the evaluation before."""
        self._start()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keeps the routes of a batch."""
        self._keep(trainer, pl_module, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keeps the routes of a batch."""
        self._keep(trainer, pl_module, batch)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keeps the routes of a batch."""
        self._keep(trainer, pl_module, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the routes of the validation split."""
        self._finish(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the routes of the test split."""
        self._finish(trainer, pl_module, "test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has routes that images chose ready for whoever writes the predictions."""
        network = _network(pl_module)
        if network is not None and network.dynamic and self._rows:
            self.routes = _routes(network, torch.cat(self._rows).cpu())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the validation split, unless training goes on."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "val")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last validation."""
        self._report(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the test split."""
        self._report(trainer, pl_module, "test")


def routed_image(routes: Routes, place: int, name: str, image: Any) -> RoutedImage:
    """One image with its route, to be drawn.

    Args:
        routes: Of the images.
        place: Which of them.
        name: Of the image.
        image: uint8 [H, W, 3].
    """
    use = routes.use(place)
    opened = f"{int(use.share.sum())} of {int(use.exists.sum())} edges open"
    return RoutedImage(image, f"{name}: {readable(routes.macs[place].item())} multiply-adds, {opened}", use)


def _network(pl_module: LightningModule) -> DynamicRouting | None:
    """The network, where its gates are those of the very batch that was evaluated."""
    if not isinstance(pl_module, Segmentation) or not isinstance(pl_module.network, DynamicRouting):
        return None
    return pl_module.network if pl_module.costs_one_forward and not pl_module.compile_network else None


def _routes(network: DynamicRouting, rows: Tensor) -> Routes:
    rows = rows[rows[:, 0].argsort(stable=True)]
    gates = rows[:, 3:].unflatten(1, (len(network.layers), -1, len(TRANSFORMS)))
    macs = torch.zeros(len(rows), dtype=torch.float64)
    for height, width in rows[:, 1:3].unique(dim=0).long().tolist():
        here = (rows[:, 1] == height) & (rows[:, 2] == width)
        macs[here] = executed_macs(network, gates[here], (height, width))
    exists = torch.zeros(gates[0].numel(), dtype=torch.bool)
    exists[network.path_index.cpu()] = True
    return Routes(rows[:, 0].long().tolist(), gates, macs, exists.view_as(gates[0]))


def _write_edges(routes: Routes, split: str, path: Path) -> None:
    use = routes.use()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "layer", "level", "transform", "share_open", "mean_weight"])
        for layer, level, transform in routes.exists.nonzero().tolist():
            share, weight = use.share[layer, level, transform], use.weight[layer, level, transform]
            written = f"{weight:.4f}" if share else ""
            writer.writerow([split, layer, level, TRANSFORMS[transform], f"{share:.4f}", written])


def _write_common_route(routes: Routes, path: Path) -> None:
    try:
        route = common_route(torch.from_numpy(routes.use().share))
    except ValueError as error:
        path.unlink(missing_ok=True)
        rank_zero_warn(f"no {path.name}: of the edges that half of the images or more take, {error}")
        return
    options = {"route": [list(edge) for edge in route], "small_gate": False, "budget": "expected"}
    config = {"model": {"init_args": {"network": {"init_args": options}}}}
    path.write_text(
        f"# The edges that half of {len(routes.index):,} validation images or more take: a fixed route without gates.\n"
        "#   python -m exp fit --config CONFIG_OF_THE_RUN --config common_route.yaml --trainer.callbacks=[]\n"
        + yaml.safe_dump(config, default_flow_style=None, sort_keys=False, width=100)
    )
