"""Which machine this is, as far as the time that a network takes depends on it."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def machine(device: torch.device) -> dict[str, str | int]:
    """What measured times hold for.

    Args:
        device: Where networks run.
    """
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"chip": chip, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
