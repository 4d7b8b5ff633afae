"""Time from the command to the first training step: `exp fit` against the imports that it stands on.

    python -m benchmarks.startup

The peer is an interpreter that imports torch, Lightning, timm, albumentations and W&B and leaves: what no
framework on these libraries can avoid. Prints the ratio of the medians over repeats.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

REPEATS = 5
IMPORTS = "import os, torch, lightning.pytorch, timm, albumentations, wandb; os._exit(0)"
# Runs the command, and leaves at the first step.
FIT = """
import os, sys
from callbacks import StepSeed
StepSeed.on_train_batch_start = lambda *args: os._exit(0)
from exp.fit import main
main(sys.argv[1:])
os._exit(1)
"""


def seconds(code: str, *arguments: str) -> float:
    """Time that an interpreter takes for some code."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Prints the medians and their ratio."""
    pairs = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as runs:
            options = ["--config=configs/quickstart.yaml", f"--runs={runs}", "--wandb=disabled"]
            pairs.append((seconds(FIT, *options), seconds(IMPORTS)))
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"first step after {ours:.1f} s, imports alone {theirs:.1f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
