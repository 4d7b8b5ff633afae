"""Where and with what something was run."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

import exp

LIBRARIES = ("torch", "torchvision", "lightning", "timm")


def surroundings(device: str) -> dict[str, str]:
    """Versions, commit and machine of what runs now.

    Args:
        device: what it runs on.
    """
    found = {"exp": exp.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found | {"commit": commit(), "machine": machine(), "system": platform.platform(), "device": device}


def commit() -> str:
    """The commit of the working tree, with `+` if code or configs have been changed since."""
    found = _git("rev-parse", "--short", "HEAD")
    return found + "+" if found and _git("diff", "--name-only", "HEAD", "--", "*.py", "*.yaml") else found


def _git(*arguments: str) -> str:
    try:
        asked = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def machine() -> str:
    """Its processors."""
    cores = f"{os.cpu_count()} CPU cores"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([cores, *(f"{gpus.count(name)} x {name}" for name in sorted(set(gpus)))])
