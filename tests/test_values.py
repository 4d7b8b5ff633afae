"""Values do not change: what is passed around and kept is frozen, except for what is there to be filled in."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "drawing", "datamodules", "lightning_modules", "callbacks", "exp", "benchmarks")

# What gathers, counts or stands for something that goes on.
STATE = {
    "datamodules.label_survey.LabelSurvey",
    "exp.claims.cells.Cell",
    "exp.claims.display.Progress",
    "exp.errors.Outcome",
    "exp.pickled.Dtype",
    "exp.pickled.Record",
    "exp.run_directory.Run",
    "exp.trust.Rule",
    "lightning_modules.coco_metrics.ImageResult",
    "lightning_modules.optimization.Part",
    "lightning_modules.segmentation_metrics.Tally",
}
# What a config names and a user's own dataclass may extend, which a frozen one forbids.
OPTIONS = {
    "datamodules.segmentation_folder.MaskClass",
    "lightning_modules.classification.Mix",
    "lightning_modules.parameter_groups.LayerDecay",
    "lightning_modules.schedules.Constant",
    "lightning_modules.schedules.MultiStep",
    "lightning_modules.schedules.Poly",
    "lightning_modules.schedules.Staircase",
    "lightning_modules.schedules.WarmupCosine",
    "lightning_modules.segmentation_losses.Ohem",
    "lightning_modules.segmentation_views.MultiScale",
    "lightning_modules.segmentation_views.SlidingWindow",
}


def dataclasses() -> dict[str, bool]:
    """Our dataclasses by dotted name, and whether each is frozen."""
    found = {}
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                text = ast.unparse(decorator)
                if text.partition("(")[0] == "dataclass":
                    found[f"{name}.{node.name}"] = "frozen=True" in text
    return found


def test_values_are_frozen() -> None:
    changing = {name for name, frozen in dataclasses().items() if not frozen}
    assert changing == STATE | OPTIONS
