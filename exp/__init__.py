"""The command line of exp: `python -m exp COMMAND --config FILE`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exp.loaded import Model

__version__ = "0.1.0"

# Importing albumentations asks a server for its newest version unless this is set.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

# `python -m exp` puts the folder that it is started in before all libraries: a downloaded one may hold anything. Python
# says "-m" for as long as it looks for the module. What a user names is found there nevertheless (`exp.plugins`).
if sys.argv[:1] == ["-m"] and sys.path[:1] == [os.getcwd()] and not __file__.startswith(os.path.join(os.getcwd(), "")):
    del sys.path[0]


def load(run: Any, **options: Any) -> Model:
    """A trained network, ready for images: `exp.load("runs/mine")("photo.jpg")`; see `exp.loaded.load`."""
    from exp.loaded import load

    return load(run, **options)
