"""Dynamic Routing: every image finds its own way through a grid of cells at four scales.

Reference: "Learning Dynamic Routing for Semantic Segmentation", CVPR 2020, arXiv 2003.10401.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from models.compute import has_values, record
from models.decisions import Grid, note
from models.layers.soft_gate import all_closed
from models.mistakes import Mistake
from models.segmenters.dynamic_routing_cell import Cell, Sent, SeparableConv, index
from models.segmenters.dynamic_routing_flops import cell_costs, cost_tables, executed_macs, route_taken
from models.segmenters.dynamic_routing_routes import (
    NUM_LEVELS,
    STEPS,
    TRANSFORMS,
    Edge,
    all_edges,
    common_route,
    fixed_route,
    pruned,
)

Maps = dict[int, Tensor]
Budget = Literal["expected", "executed"]


class Decoder(nn.Module):
    """Adds up the levels from the coarsest to the finest, and predicts classes.

    Args:
        width: Channels of level 0; level k has `width * 2^k`.
        num_classes: Classes.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            Conv2dNormActivation(width << level, width << max(level - 1, 0), 1) for level in range(NUM_LEVELS)
        )
        self.predictor = nn.Conv2d(width, num_classes, 3, padding=1)

    def forward(self, maps: Maps) -> Tensor:
        """Maps by level, to logits [B, num_classes, H, W] of level 0.

        Args:
            maps: [B, width * 2^k, H / 2^k, W / 2^k] of level k; one that is missing is zero.
        """
        given, reference = next(iter(maps.items()))
        batch, chans, height, width = reference.shape
        x: Tensor | None = None
        for level in reversed(range(NUM_LEVELS)):
            own = maps.get(level)
            if x is not None:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
                x = x if own is None else x + own
            elif own is not None:
                x = own
            else:
                shape = (chans << level >> given, height << given >> level, width << given >> level)
                x = reference.new_zeros(batch, *shape)
            x = self.levels[level](x)
        return self.predictor(x)


class DynamicRouting(nn.Module):
    """Segments each image along the paths of a grid that its gates open.

    `num_layers` layers of up to four cells, at strides 4 to 32, follow a stem and an initial cell. In training every
    cell computes everything, and closed paths are multiplied by zero. In evaluation a cell runs for the images that
    have a path open there, and each transform for the images whose path it is; the result of an image does not depend
    on the others in its batch. A compiled or exported evaluation computes everything, to the same result.

    The compute that the gates decide over is recorded at the body, `up` and `down` of the cells: in training weighted
    by the gates, the paper's expected cost E, in evaluation as it was run. `callbacks.ComputeBudget` with
    `scope: dynamic` makes the paper's budget loss of it, `weight (E / E_all - mu)^2`. E falls as gates weaken, long
    before one closes and saves anything: with `budget: executed`, which is not the paper's, training records what an
    evaluation by these gates would run, with the gradient of E, and a target is one of executed compute.

    How far a forward pass opens the transforms keep, up and down of each layer and level, the initial cell first, is
    noted in `models.decisions`.

    Published sizes: 16 or 33 layers of width 64; Dynamic-A, B and C have small gates and are told apart by their
    budgets (weight, target) of (0.8, 0.1), (0.5, 0.1) and (0.5, 0.2); Dynamic-Raw has full gates and no budget.

    Args:
        num_classes: Classes.
        num_layers: Layers after the initial cell; 3 or more, as levels open one a layer.
        width: Channels at stride 4; they double with the stride.
        route: `dynamic`: gates decide. Or a fixed network in the same grid, without gates and with only the cells and
            transforms that it uses: a name (see `dynamic_routing_routes.fixed_route`), or a list of edges (layer,
            level, transform).
        budget: What training records for a budget: the `expected` cost, or what would be `executed`.
        small_gate: Whether gates look at maps of a quarter of the height and width; images are then 128 pixels or more.
        drop_path_rate: Stochastic depth of the last layer at the end of the training; grows linearly from 0 at the
            first and, by an `Annealing` of `progress`, with the training.

    Raises:
        Mistake: An option out of its range.
    """

    stem_chans = 64
    # The coarsest stride.
    size_divisor = 4 << (NUM_LEVELS - 1)
    refuses_compile = "compiling its grid of cells takes many minutes, and what closed gates skip would be computed"
    # A network that was trained with every path open is a start (see `models.official.absent_parts`).
    fresh_parts: ClassVar[dict[str, str]] = {"gates": r"layers\.\d+\.\d+\.gate\..*"}
    path_index: Tensor
    body_macs: Tensor
    transform_macs: Tensor

    def __init__(
        self,
        num_classes: int = 19,
        num_layers: int = 16,
        width: int = 64,
        route: str | Sequence[Edge] = "dynamic",
        budget: Budget = "expected",
        small_gate: bool = False,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if num_layers < 3:
            raise Mistake(f"num_layers must be 3 or more, as one of four levels opens a layer, not {num_layers}")
        if width < 2 or width % 2:
            raise Mistake(f"width must be even and positive, not {width}")
        if num_classes < 1:
            raise Mistake(f"num_classes must be positive, not {num_classes}")
        if not 0 <= drop_path_rate < 1:
            raise Mistake(f"drop_path_rate must be in [0, 1), not {drop_path_rate}")
        if budget not in get_args(Budget):
            raise Mistake(f"budget must be one of {', '.join(get_args(Budget))}, not {budget!r}")
        self.num_classes, self.num_layers, self.width = num_classes, num_layers, width
        self.dynamic = route == "dynamic"
        self.budget = budget
        self.small_gate = small_gate
        if self.dynamic:
            edges = all_edges(num_layers)
        else:
            if small_gate:
                raise Mistake(f"small_gate is for the route 'dynamic'; {route!r} has no gates")
            if budget != "expected":
                raise Mistake(f"budget {budget!r} is for the route 'dynamic'; {route!r} has no gates")
            edges = fixed_route(route, num_layers) if isinstance(route, str) else pruned(route, num_layers)

        stem = self.stem_chans
        self.stem = nn.Sequential(
            # Without padding, as published; its odd output is halved to the same size as an even one.
            Conv2dNormActivation(3, stem, 3, stride=2, padding=0),
            SeparableConv(stem, stem),
            nn.ReLU(),
            SeparableConv(stem, width, stride=2),
            nn.ReLU(),
        )
        layers: list[nn.ModuleDict] = []
        for layer in range(num_layers + 1):
            cells = nn.ModuleDict()
            for level in range(NUM_LEVELS):
                transforms = [transform for transform in TRANSFORMS if (layer, level, transform) in edges]
                if transforms:
                    rate = drop_path_rate * layer / num_layers
                    cells[str(level)] = Cell(width << level, transforms, self.dynamic, small_gate, rate)
            layers.append(cells)
        self.layers = nn.ModuleList(layers)
        self.decoder = Decoder(width, num_classes)

        paths = [
            (layer * NUM_LEVELS + level) * len(TRANSFORMS) + TRANSFORMS.index(transform)
            for layer, level, cell in self.cells()
            for transform in cell.transforms
        ]
        self.register_buffer("path_index", torch.tensor(paths), persistent=False)
        body_macs, transform_macs = cost_tables(self, elementwise=False)
        self.register_buffer("body_macs", body_macs, persistent=False)
        self.register_buffer("transform_macs", transform_macs, persistent=False)
        self._init_weights()

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] of any size to logits [B, num_classes, H, W].

        Raises:
            Mistake: Images too small for small gates.
        """
        height, width = images.shape[-2:]
        maps, gates = self.features(images)
        self._note(gates, (height + -height % self.size_divisor, width + -width % self.size_divisor))
        logits = F.interpolate(self.decoder(maps), scale_factor=4, mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    def features(self, images: Tensor) -> tuple[Maps, Tensor]:
        """What the grid hands to the decoder.

        Args:
            images: [B, 3, H, W] of any size; padded with zeros at the bottom and at the right to multiples of 32.

        Returns:
            Maps by level, `width * 2^k` channels at stride 4 * 2^k; levels that no image has reached may be missing.
            And the gates [B, layers + 1, 4, 3], with their gradient.
        """
        images = F.pad(images, (0, -images.shape[-1] % self.size_divisor, 0, -images.shape[-2] % self.size_divisor))
        if self.small_gate and min(images.shape[-2:]) < 128:
            raise Mistake(f"small gates need images of 128 pixels or more, not {tuple(images.shape[-2:])}")
        x = self.stem(images)
        sparse = self.dynamic and not self.training and has_values(x) and not torch.compiler.is_compiling()
        maps, paths = self._sparse(x) if sparse else self._dense(x)
        flat = paths.new_zeros(x.shape[0], len(self.layers) * NUM_LEVELS * len(TRANSFORMS))
        gates = flat.index_copy(1, self.path_index, paths).unflatten(1, (len(self.layers), NUM_LEVELS, -1))
        if self.dynamic:
            self._record(gates, images.shape[-2] * images.shape[-1])
        return maps, gates

    def cells(self) -> Iterator[tuple[int, int, Cell]]:
        """Each cell with its layer and level, in the order of computation; layer 0 is the initial cell."""
        for layer, cells in enumerate(self._grid()):
            for level, cell in cells:
                yield layer, level, cell

    def get_classifier(self) -> nn.Module:
        """The layer that depends on the classes."""
        return self.decoder.predictor

    def route_macs(self, routes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Multiply-adds of an inference by each route, all of the network included (see `models.decisions.Router`)."""
        return executed_macs(self, routes, image_size)

    def common_route(self, usage: Tensor) -> dict[str, Any]:
        """Arguments of the paper's Common network: the edges of at least half of the images, without gates.

        Args:
            usage: Share of the images for which each edge is open [layers + 1, 4, 3].

        Raises:
            Mistake: No path of such edges reaches the last layer.
        """
        return {"route": [list(edge) for edge in common_route(usage)], "small_gate": False, "budget": "expected"}

    def _grid(self) -> Iterator[list[tuple[int, Cell]]]:
        for cells in self.layers:
            assert isinstance(cells, nn.ModuleDict)
            yield [(int(level), cell) for level, cell in cells.items()]  # type: ignore[misc]

    def _dense(self, x: Tensor) -> tuple[Maps, Tensor]:
        """Computes everything for every image."""
        maps: Maps = {0: x}
        # In evaluation, which images anything has reached a level of.
        masked = self.dynamic and not self.training
        reached: dict[int, Tensor] = {0: torch.ones(x.shape[0], dtype=torch.bool, device=x.device)}
        paths: list[Tensor] = []
        for cells in self._grid():
            sums: Maps = {}
            reaching: dict[int, Tensor] = {}
            for level, cell in cells:
                outputs, gates = cell(maps[level], reached[level] if masked else None)
                paths.append(gates)
                for transform, output in outputs.items():
                    to = level + STEPS[transform]
                    sums[to] = sums[to] + output if to in sums else output
                    if masked:
                        sent = reached[level] if transform == "keep" else ~all_closed(gates)
                        reaching[to] = reaching[to] | sent if to in reaching else sent
            maps, reached = sums, reaching
        return maps, torch.cat(paths, 1)

    def _sparse(self, x: Tensor) -> tuple[Maps, Tensor]:
        """Computes what is open for each image."""
        batch = len(x)
        mail: dict[int, list[Sent]] = {0: [Sent("keep", x, list(range(batch)), list(range(batch)))]}
        paths: list[Tensor] = []
        for cells in self._grid():
            outgoing: dict[int, list[Sent]] = {}
            for level, cell in cells:
                received = mail.get(level, [])
                if reached := sorted({image for part in received for image in part.reached}):
                    sent, gates = cell.sparse(self._sum(received, level, x), reached)
                else:
                    sent, gates = [], torch.zeros(batch, len(cell.transforms), device=x.device)
                paths.append(gates)
                for part in sent:
                    outgoing.setdefault(level + STEPS[part.transform], []).append(part)
            mail = outgoing
        return {level: self._sum(received, level, x) for level, received in mail.items()}, torch.cat(paths, 1)

    @staticmethod
    def _sum(received: list[Sent], level: int, finest: Tensor) -> Tensor:
        """Adds up what has reached a level [B, C, H, W], zero for images that nothing was sent of."""
        batch, chans, height, width = finest.shape
        parts = [(part.maps, part.images) for part in received if part.maps is not None]
        if parts and all(len(images) == batch for _, images in parts):
            return sum((maps for maps, _ in parts[1:]), parts[0][0])
        total = finest.new_zeros(batch, chans << level, height >> level, width >> level)
        for maps, images in parts:
            total.index_add_(0, index(images, finest), maps.to(total.dtype))
        return total

    def _note(self, gates: Tensor, image_size: tuple[int, int]) -> None:
        if torch.compiler.is_compiling():
            return
        exists = torch.zeros(gates[0].numel(), dtype=torch.bool, device=gates.device)
        exists = exists.index_fill(0, self.path_index, True).view_as(gates[0])
        steps = tuple(STEPS[transform] for transform in TRANSFORMS)
        levels = tuple(f"stride {4 << level}" for level in range(NUM_LEVELS))
        grid = Grid(exists, steps, levels, not self.dynamic, image_size)
        # Gates that are too small together to count as open are none.
        note(self, "route", gates * ~all_closed(gates)[..., None], "way", TRANSFORMS, grid=grid)

    def _record(self, gates: Tensor, pixels: int) -> None:
        weights, peaks = gates, gates.amax(3)
        if not self.training or self.budget == "executed":
            taken = route_taken(gates)[0].float()
            # The value of what runs, the gradient of what is expected; in evaluation there is none.
            weights, peaks = taken + (weights - weights.detach()), taken.amax(3) + (peaks - peaks.detach())
        bodies = (peaks * (self.body_macs * pixels)).flatten(1).unbind(1)
        transforms = (weights * (self.transform_macs * pixels)).flatten(1).unbind(1)
        for layer, level, cell in self.cells():
            place = layer * NUM_LEVELS + level
            dense = cell_costs(self.width << level, elementwise=False)
            here = pixels / (16 << 2 * level)
            if layer > 0:
                record(cell.body, bodies[place], dense["body"] * here)
            for column, transform in enumerate(TRANSFORMS):
                if transform != "keep" and transform in cell.transforms:
                    share = transforms[place * len(TRANSFORMS) + column]
                    record(cell.get_submodule(transform), share, dense[transform] * here)

    def _init_weights(self) -> None:
        gates = {id(module) for _, _, cell in self.cells() if cell.gate is not None for module in cell.gate.modules()}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and id(module) not in gates:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
