"""Third-party warnings that no user can act on, each silenced by its own text."""

from __future__ import annotations

import logging
import warnings

MESSAGES = (
    # Lightning calls jsonargparse by names that jsonargparse has renamed.
    r"(?s).*``instantiate_classes`` was deprecated",
    r"(?s).*JsonargparseDeprecationWarning",
    # The loaders' workers are the user's choice; two cores have no use for more.
    r".*does not have many workers which may be a bottleneck",
    # Lightning suggests its own sanity hints on purposeful settings.
    r".*Checkpoint directory .* exists and is not empty",
    r".*Trying to infer the `batch_size` from an ambiguous collection",
    # wandb and timm use names that their own dependencies deprecate.
    r".*'repr' attribute with value False was provided to the `Field\(\)` function",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*'frozen' attribute with value True was provided to the `Field\(\)` function",
)


def silence() -> None:
    """Installs the filters; a warning with any other text still shows."""
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message=message)
    # "GPU available: False", tips and the like; errors and warnings still show.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.accelerators.cuda").setLevel(logging.WARNING)
