"""Reports in a Trainer of their own, told where to put what they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Trainer

from callbacks.reports import Place, Report

R = TypeVar("R", bound=Report)


def placed(report: R, folder: Path) -> R:
    """A report that puts pictures and files into a folder."""
    report.place = Place(folder, folder)
    return report


def trainer_with(*callbacks: Any, folder: Path, **options: Any) -> Trainer:
    """A quiet Trainer on the CPU with some callbacks."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", default_root_dir=folder, callbacks=[*callbacks], **(quiet | options))
