"""What happens to samples, records and files that cannot be used: the first of them ends it, or they are left out."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Literal

from datamodules.errors import BadSample, DataError
from datamodules.finding import shown

# Bad records that a message names; of more it says how many.
MAX_LISTED = 10


class Skipping:
    """Raises for what cannot be used, or notes it and warns.

    Args:
        policy: ``error`` or ``skip``; see ``DataModule``.
        most: How many may be skipped.

    Attributes:
        skipped: What was skipped, by name, and why.
    """

    def __init__(self, policy: Literal["error", "skip"], most: int) -> None:
        self.policy: Literal["error", "skip"] = policy
        self.most = most
        self.skipped: dict[str, str] = {}

    def collect(self) -> None:
        """From now on, leaves out whatever cannot be used, however much that is."""
        self.policy, self.most = "skip", sys.maxsize

    def report(self, bad: list[BadSample]) -> None:
        """Takes note of samples that could not be loaded.

        Raises:
            DataError: If they are errors, or too many.
        """
        for sample in bad:
            if self.policy == "error" or not sample.skippable:
                remedy = (
                    "Repair or remove the file, or set on_bad_sample: skip to leave such samples out."
                    if sample.skippable
                    else "Check train_transforms, eval_transforms and views."
                )
                # Of a fault in the transforms the reason is a traceback.
                told = f"{sample}\n" if "\n" in sample.reason else f"{str(sample).removesuffix('.')}. "
                raise DataError(told + remedy)
            if sample.name in self.skipped:
                continue
            self.skipped[sample.name] = sample.reason
            if len(self.skipped) > self.most:
                raise DataError(
                    f"{len(self.skipped)} samples could not be read, more than max_bad_samples={self.most}. The last "
                    f"one is {sample}\nRepair the data set or raise max_bad_samples."
                )
            warnings.warn(f"Skipped {sample} ({len(self.skipped)} skipped so far)", stacklevel=2)

    def leave_out(self, found: str, problems: list[tuple[str, str]], count: int, file: Path | None) -> None:
        """Takes note of records or files; see ``DataModule.leave_out``."""
        if not count:
            return
        problems = [(shown(record), shown(reason)) for record, reason in problems]
        reasons = "".join(f"\n  {record}: {reason}" for record, reason in problems[:MAX_LISTED])
        reasons += f"\n  and {count - MAX_LISTED} more" if count > MAX_LISTED else ""
        if self.policy == "error":
            raise DataError(f"{found}:{reasons}\nRepair or remove them, or set on_bad_sample: skip to leave them out.")
        within = "" if file is None else f"{file}: "
        self.skipped |= {f"{within}{record}": reason for record, reason in problems}
        if len(self.skipped) + count - len(problems) > self.most:
            raise DataError(
                f"{found}, and with what was skipped before that is more than max_bad_samples={self.most}:{reasons}\n"
                "Repair or remove them, or raise max_bad_samples."
            )
        warnings.warn(f"{found} and are left out:{reasons}", stacklevel=3)
