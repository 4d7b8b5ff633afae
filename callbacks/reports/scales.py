"""What each scale of a dynamic pyramid does for which images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from callbacks.reports.painter import Painter
from callbacks.reports.report import Report
from callbacks.whole_files import write_table
from drawing.figures import SMALL, evenly
from drawing.scales import ScaledImage, scale_sheet
from lightning_modules.findings import gathered
from lightning_modules.task import Batch
from models.decisions import Decision

# On `scales.png`.
IMAGES = 6


class Scales(Painter):
    """Draws and writes which option each level of a pyramid took, over an evaluation; of one layer.

    - `scales.png`: how many images take which option, and images from the cheapest to the dearest;
    - `scales.csv`: a row for each level and option.

    Logs `level0_share`, `level1_share` ...: what a level cost on average, of the dearest of its options. Of a level
    that is open or closed this is the share of the images for which it was open.

    Args:
        report: Whose evaluation it is.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self._decision: Decision | None = None
        # Positions and options of each batch [B, 1 + levels].
        self._batches: list[Tensor] = []

    @override
    def keep(self, found: Mapping[str, Decision], batch: Batch, outputs: Any) -> None:
        self._decision = next(iter(found.values()))
        self._batches.append(torch.cat([batch["index"][:, None], self._decision.values], 1))

    @override
    def merge(self) -> None:
        own = (self._decision, torch.cat(self._batches).cpu()) if self._batches else None
        given = [each for each in gathered(own) if each is not None]
        if given:
            self._decision = given[0][0]
            rows = torch.cat([each for _, each in given])
            self._batches = [rows[rows[:, 0].argsort()]]

    @override
    def metrics(self) -> Mapping[str, float]:
        if self._decision is None:
            return {}
        shares, costs = self._shares(), self._costs()
        spent = (shares * costs).sum(1) / costs.amax(1)
        return {f"level{level}_share": share for level, share in enumerate(spent.tolist())}

    @override
    def draw(self) -> Mapping[str, Figure]:
        if self._decision is None:
            return {}
        split, data, costs = self.report.split, self.report.data, self._costs()
        index, choices = self._batches[0][:, 0].tolist(), self._batches[0][:, 1:]
        spent = costs[torch.arange(len(costs)), choices].sum(1)
        shown = []
        for place in evenly(spent.argsort(stable=True).tolist(), IMAGES):
            name = Path(data.sample_name(split, index[place])).name
            picture = data.picture(split, index[place], SMALL)
            shown.append(ScaledImage(picture, name, choices[place].tolist(), spent[place].item()))
        title = (
            f"{split}: {spent.mean().item():.1%} of the compute that the levels can take, over {len(index):,} images\n"
            f"least {spent.min().item():.1%}, most {spent.max().item():.1%}"
        )
        figure = scale_sheet(title, self._shares().numpy(), costs.numpy(), self._decision.names, shown)
        return {"scales": figure}

    @override
    def write(self, folder: Path) -> None:
        if self._decision is None:
            return
        rows = [["split", "level", self._decision.option, "share_of_images", "cost"]]
        for level, (shares, costs) in enumerate(zip(self._shares().tolist(), self._costs().tolist(), strict=True)):
            for name, share, cost in zip(self._decision.names, shares, costs, strict=True):
                rows.append([self.report.split, str(level), name, f"{share:.4f}", f"{cost:.4f}"])
        write_table(folder / "scales.csv", rows)

    def _shares(self) -> Tensor:
        """Of the images that take each option [levels, options]."""
        assert self._decision is not None
        choices, options = self._batches[0][:, 1:], len(self._decision.names)
        return torch.nn.functional.one_hot(choices, options).double().mean(0)

    def _costs(self) -> Tensor:
        """Of each option, as shares of all that the levels can cost [levels, options]."""
        assert self._decision is not None
        return torch.tensor(self._decision.costs, dtype=torch.float64).view(-1, len(self._decision.names))
