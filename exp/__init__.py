"""The command line of exp: `python -m exp COMMAND --config FILE`."""

import os

__version__ = "0.1.0"

# Importing albumentations asks a server for its newest version unless this is set.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
