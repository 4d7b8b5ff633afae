"""Data sets for training: one module a data set layout, on one sampler, loader and decoder."""

import os

# albumentations asks the internet for its newest version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from datamodules.base import DataModule  # noqa: E402
from datamodules.digits import Digits  # noqa: E402
from datamodules.errors import DataError  # noqa: E402

__all__ = ["DataError", "DataModule", "Digits"]
