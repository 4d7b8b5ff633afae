"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# Tells the processes that Lightning's launcher starts who started them.
MAIN = "EXP_MAIN"


def is_started_by_main() -> bool:
    """Whether this process was started by Lightning's launcher, in another process of the same command."""
    return MAIN in os.environ and os.environ[MAIN] != str(os.getpid()) and os.environ.get("LOCAL_RANK", "0") != "0"


def join_main() -> None:
    """Binds this process to the end of the one whose command it is part of, if there is one, else says who it is."""
    if not is_started_by_main():
        os.environ[MAIN] = str(os.getpid())
        return
    die_with_parent()
    # It may have ended before this was asked for, while this process had not started yet.
    if os.getppid() != int(os.environ[MAIN]):
        os._exit(1)


def die_with_parent() -> None:
    """Asks Linux to end this process with the one that started it, which may be killed without a word."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
