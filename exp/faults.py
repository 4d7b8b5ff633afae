"""Exceptions that are nobody's mistake: one line on the screen, and the traceback in a file."""

from __future__ import annotations

import re
import tempfile
import time
import traceback
from pathlib import Path

from callbacks.reports.report import ERRORS
from callbacks.whole_files import note
from datamodules import DataError
from exp.unwritable import causes
from models.mistakes import Mistake

OURS = ("models", "lightning_modules", "datamodules", "callbacks", "drawing", "exp")
# What Python says of arguments that a function does not take.
_SIGNATURE = re.compile(r"\w+\(\) (got|missing|takes) ")


def mistake_in(error: BaseException) -> BaseException | None:
    """What a person can mend of an error or of what it came of: its message says all there is to say."""
    return next((cause for cause in causes(error) if isinstance(cause, Mistake | DataError)), None)


def refuses_arguments(error: BaseException) -> bool:
    """Whether an error that came of building a class is about what the class was given, rather than a fault of ours.

    Other people's classes say by ValueError and TypeError what they do not take; ours by `Mistake`.
    """
    if mistake_in(error) is not None or _SIGNATURE.search(str(error)):
        return True
    first = list(causes(error))[-1]
    return isinstance(error, ValueError | TypeError) and _place(first)[0].split(".")[0] not in OURS


def fault(error: BaseException, folder: Path | None = None) -> str:
    """Keeps the traceback of an error in a file.

    Args:
        error: the error.
        folder: where `errors.log` is to be, if there is such a folder.

    Returns:
        What to say: the error, where it happened and where the rest is, in one line.
    """
    told = traceback.format_exception(error)
    module, line = _place(error)
    what = " ".join((str(error).strip().splitlines() or [""])[0].split())
    shown = f"{type(error).__name__}{': ' if what else ''}{what} ({module}:{line})"
    entry = f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{''.join(told)}\n"
    if folder is not None and note(log := folder / ERRORS, entry):
        return f"{shown}; the traceback is in {log}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="exp-", suffix=".log", delete=False) as kept:
            kept.write(entry)
        return f"{shown}; the traceback is in {kept.name}"
    except OSError:
        return "".join(told).rstrip()


def _place(error: BaseException) -> tuple[str, int]:
    """Module and line where an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (trace.tb_frame.f_globals.get("__name__", "?"), trace.tb_lineno) if trace is not None else ("?", 0)
