"""Every figure of detection, one after the other: attention, network, evaluation, data, start.

    python -m benchmarks.detection --data ../shared/data/coco128

Each is a command of its own, which says what it compares: `benchmarks.deformable_attention`,
`benchmarks.coco_evaluation` and `benchmarks.coco_pipeline`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Runs the benchmarks; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO folder; its training split is read")
    options = parser.parse_args()
    commands = [
        ["deformable_attention"],
        ["deformable_attention", "--network"],
        ["coco_evaluation"],
        ["coco_pipeline", "--data", str(options.data)],
        ["coco_pipeline", "--startup", "118000"],
    ]
    for name, *arguments in commands:
        print(f"== python -m benchmarks.{' '.join([name, *arguments])}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=True)


if __name__ == "__main__":
    main()
