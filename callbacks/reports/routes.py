"""Which ways images take through a grid of cells, and what that costs each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.painter import Painter
from callbacks.reports.report import Report
from callbacks.whole_files import write_table, write_whole
from drawing.figures import LARGE
from drawing.numbers import readable
from drawing.routes import RoutedImage, RouteUse, route_sheet
from lightning_modules.findings import gathered
from lightning_modules.task import Batch
from models.decisions import Decision, Grid

# On `routes.png`.
IMAGES = 3


@dataclass(frozen=True)
class Taken:
    """The routes that images took, in the order of their positions in the split; on the host.

    Args:
        index: Position of each image [N].
        gates: How far each way is open [N, layers, levels, ways].
        macs: Multiply-adds that ran for each [N], float64.
        names: What the ways are called.
        grid: What there is to be taken.
    """

    index: list[int]
    gates: Tensor
    macs: Tensor
    names: tuple[str, ...]
    grid: Grid

    def use(self, place: int | None = None) -> RouteUse:
        """How all images use the grid, or the one at a place."""
        return route_use(self.gates if place is None else self.gates[place : place + 1], self.grid)


class Routes(Painter):
    """Draws and writes the routes of an evaluation.

    - `routes.png`: how many images take which edge of the grid and with which gate weight, over the whole split, and
      the routes of the first images with what each cost; of a fixed route only the grid;
    - `routes.csv`: a row for each edge;
    - `common_route.yaml`: the fixed network of the edges that half of the validation images or more take, as a config
      to be added to that of the run (Common-A, -B and -C of arXiv 2003.10401).

    Logs `macs_min` and `macs_max`, the multiply-adds of the images that took least and most, and `open_share`, the
    share of the edges that are open, the mean over the images. A fixed route logs nothing.

    A layer that notes routes can say what they cost, see `models.decisions.Router`.

    Args:
        report: Whose evaluation it is.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.taken: Taken | None = None
        self._layer = ""
        # Positions, gates, and what they were decided for, of each batch.
        self._batches: list[tuple[Tensor, Decision]] = []

    @override
    def keep(self, found: Mapping[str, Decision], batch: Batch, outputs: Any) -> None:
        self._layer, decision = next(iter(found.items()))
        self._batches.append((batch["index"], decision))

    @override
    def merge(self) -> None:
        router: Any = self.report.task.network.get_submodule(self._layer)
        own = []
        for index, decision in self._batches:
            assert decision.grid is not None
            gates = decision.values.float().cpu()
            own.append((index.cpu(), gates, router.route_macs(gates, decision.grid.image_size)))
        first = self._batches[0][1] if self._batches else None
        about = None if first is None or first.grid is None else (first.names, _on_host(first.grid))
        self._batches = []
        given = [each for each in gathered((about, own)) if each[1]]
        if not given:
            return
        index, gates, macs = (torch.cat(part) for part in zip(*(row for _, own in given for row in own), strict=True))
        order = index.argsort(stable=True)
        assert given[0][0] is not None
        self.taken = Taken(index[order].tolist(), gates[order], macs[order], *given[0][0])

    @override
    def metrics(self) -> Mapping[str, float]:
        if self.taken is None or self.taken.grid.fixed:
            return {}
        macs = self.taken.macs
        return {
            "macs_min": macs.min().item(),
            "macs_max": macs.max().item(),
            "open_share": self.taken.use().open_share,
        }

    @override
    def draw(self) -> Mapping[str, Figure]:
        taken, split, data = self.taken, self.report.split, self.report.data
        if taken is None:
            return {}
        use = taken.use()
        title = f"{split}: {readable(taken.macs.mean().item())} multiply-adds an image"
        shown: list[RoutedImage] = []
        if not taken.grid.fixed:
            title += (
                f" on average, least {readable(taken.macs.min().item())}, most {readable(taken.macs.max().item())}\n"
                f"{len(taken.index):,} images, {use.open_share:.1%} of the edges open"
            )
            for place, index in enumerate(taken.index[:IMAGES]):
                name = Path(data.sample_name(split, index)).name
                shown.append(routed_image(taken, place, name, data.picture(split, index, LARGE)))
        return {"routes": route_sheet(title, shown, use)}

    @override
    def write(self, folder: Path) -> None:
        if self.taken is None or self.taken.grid.fixed:
            return
        _write_edges(self.taken, self.report.split, folder / "routes.csv")
        if self.report.split == "val":
            self._write_common_route(self.taken, folder / "common_route.yaml")

    def _write_common_route(self, taken: Taken, path: Path) -> None:
        router: Any = self.report.task.network.get_submodule(self._layer)
        try:
            options = router.common_route(torch.from_numpy(taken.use().share))
        except ValueError as error:
            path.unlink(missing_ok=True)
            rank_zero_warn(f"no {path.name}: of the edges that half of the images or more take, {error}")
            return
        config = {"model": {"init_args": {"network": {"init_args": options}}}}
        write_whole(
            path,
            f"# The edges that half of {len(taken.index):,} validation images or more take: a fixed route without "
            "gates.\n#   python -m exp fit --config CONFIG_OF_THE_RUN --config common_route.yaml "
            "--trainer.callbacks=[]\n" + yaml.safe_dump(config, default_flow_style=None, sort_keys=False, width=100),
        )


def route_use(gates: Tensor, grid: Grid) -> RouteUse:
    """How one or more images use a grid.

    Args:
        gates: Their gates [B, layers, levels, ways], on the host.
        grid: What there is.
    """
    opened = gates > 0
    reached = torch.zeros_like(opened[:, 0, :, 0])
    reached[:, 0] = True
    arrived = reached.clone()
    taken, kept = [], []
    for edges in opened.unbind(1):
        edges = edges & reached[..., None]
        taken.append(edges)
        # Cells that all ways to are closed have zeros, which is nothing to be seen.
        kept.append(arrived & ~edges.any(2))
        sent = edges.any(2)
        arrived = kept[-1].clone()
        for way, step in enumerate(grid.steps):
            # One that is open sends all ways, of which some may be zero.
            reached = reached | _shifted(sent, step)
            arrived = arrived | _shifted(edges[..., way], step)
    used = torch.stack(taken, 1)
    passed = torch.stack(kept, 1) & grid.exists[..., 0]
    computes = used.any(3)
    weight = (gates * used).sum(0) / used.sum(0)
    return RouteUse(
        exists=grid.exists.numpy(),
        share=used.double().mean(0).numpy(),
        weight=weight.numpy(),
        cells=computes.double().mean(0).numpy(),
        kept=passed.double().mean(0).numpy(),
        steps=grid.steps,
        levels=grid.levels,
    )


def routed_image(taken: Taken, place: int, name: str, image: Any) -> RoutedImage:
    """One image with its route, to be drawn.

    Args:
        taken: The routes of the images.
        place: Which of them.
        name: The image's file name.
        image: uint8 [H, W, 3].
    """
    use = taken.use(place)
    opened = f"{int(use.share.sum())} of {int(use.exists.sum())} edges open"
    return RoutedImage(image, f"{name}: {readable(taken.macs[place].item())} multiply-adds, {opened}", use)


def _shifted(cells: Tensor, step: int) -> Tensor:
    """Cells [B, levels], some levels further on; nothing comes from beyond the grid."""
    moved = cells.roll(step, 1)
    if step > 0:
        moved[:, :step] = False
    elif step < 0:
        moved[:, step:] = False
    return moved


def _on_host(grid: Grid) -> Grid:
    return Grid(grid.exists.cpu(), grid.steps, grid.levels, grid.fixed, grid.image_size)


def _write_edges(taken: Taken, split: str, path: Path) -> None:
    use = taken.use()
    rows = [["split", "layer", "level", "transform", "share_open", "mean_weight"]]
    for layer, level, way in taken.grid.exists.nonzero().tolist():
        share, weight = use.share[layer, level, way], use.weight[layer, level, way]
        written = f"{weight:.4f}" if share else ""
        rows.append([split, layer, level, taken.names[way], f"{share:.4f}", written])
    write_table(path, rows)
