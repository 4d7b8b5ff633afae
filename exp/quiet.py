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
    # On a cluster's login node, or where SLURM is merely installed, a run without srun is meant.
    r"The `srun` command is available on your system but is not used",
    # What evaluates leaves out callbacks that only write while they train.
    r"(?s).*callbacks used to create the checkpoint need to be provided .*(Checkpoint|Finder|SpikeDetection)",
    # Lightning suggests its own sanity hints on purposeful settings.
    r".*Checkpoint directory .* exists and is not empty",
    r".*Trying to infer the `batch_size` from an ambiguous collection",
    # No held-out images means no validation, as the published recipes have it.
    r"Total length of `list` across ranks is zero",
    # An epoch of few batches is what small data sets have.
    r"The number of training batches .* is smaller than the logging interval",
    # With `overfit_batches` the order of our loaders is that of the first epoch; Lightning can but warn.
    r"You requested to overfit but enabled .* dataloader shuffling",
    # What a network keeps in evaluation mode while it trains, such as a frozen backbone, is meant to be.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # A 1x1 convolution's gradient has two equivalent strides; DDP remarks on the one it did not choose.
    r"(?s)Grad strides do not match bucket view strides",
    # wandb and timm use names that their own dependencies deprecate.
    r".*'repr' attribute with value False was provided to the `Field\(\)` function",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r".*'frozen' attribute with value True was provided to the `Field\(\)` function",
)


def silence() -> None:
    """Installs the filters; a warning with any other text still shows."""
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message=message)
    # "GPU available: False", "Seed set to 0", tips and the like; warnings and errors still show.
    for name in (
        "pytorch.utilities.rank_zero",
        "pytorch.accelerators.cuda",
        "fabric.utilities.seed",
        "fabric.utilities.distributed",
        "fabric.utilities.rank_zero",
    ):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
