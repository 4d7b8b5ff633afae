"""Signals that ask a command to stop, from its first line to its last: one line and an exit code, no traceback."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from exp.processes import is_started_by_main

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# The exit code of a command that goes on where it was when it is run again: sysexits.h's EX_TEMPFAIL.
AGAIN = 75
# Within this time, in seconds, a second Ctrl-C is the first one: a wrapper may pass on what the terminal sent already.
ECHO = 0.3
# After so many seconds, who waits for the end of a step is told that the signal was heard.
TOLD = 1.5
# How long, in seconds, a command may take to hear of a signal that ends it: it may be inside of C++, or not listen.
PATIENCE = 5.0


class Stopped(BaseException):
    """Raised where the command is when it is asked to stop.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(name(self.signal))


class _Heard:
    """What has been asked of this process since its command started."""

    first: signal.Signals | None = None
    at = 0.0
    thread: threading.Thread | None = None
    sockets: tuple[socket.socket, ...] = ()


_heard = _Heard()


def name(number: signal.Signals) -> str:
    """What people call a signal."""
    return "Ctrl-C" if number == signal.SIGINT else number.name


def asked() -> signal.Signals | None:
    """The signal by which this command was asked to stop, if it was; known even while its main thread waits in C++."""
    return _heard.first


def leads() -> bool:
    """Whether this process speaks for all of its job."""
    return all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def say(line: str) -> None:
    """Writes a line for whoever asked, once for all processes."""
    if leads():
        print(f"exp: {line}", file=sys.stderr, flush=True)


def ended(number: signal.Signals, again: bool) -> int:
    """Says why a command ends in the midst of what it did, and returns its exit code.

    Args:
        number: the signal that it ends by.
        again: whether it goes on when it is run again.
    """
    say(f"stopped by {name(number)}" + ("; the same command goes on" if again else ""))
    return AGAIN if again else 128 + number


@contextmanager
def listening(again: bool) -> Iterator[None]:
    """Has a command stop where it is, by `Stopped`, when it is asked to; a second Ctrl-C ends the process at once.

    A signal that the process was started to ignore stays ignored. Whoever can do better than to stop at once, as a
    training can, takes the signals over for as long as it can. What a process of Lightning's launcher hears, it passes
    on to the one that started it, whose end is its own; Ctrl-C at a terminal reaches both.

    Args:
        again: whether the command goes on when it is run again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPS}
    for number, handler in before.items():
        if is_started_by_main():
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else _pass_on)
        elif handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    # Python calls its handlers between two steps of the main thread, which may be in C++ for good. This is written to
    # at once.
    ear, bell = socket.socketpair()
    bell.setblocking(False)
    _heard.first, _heard.sockets = None, (ear, bell)
    _heard.thread = threading.Thread(target=_listen, args=(ear, again), name="signals", daemon=True)
    _heard.thread.start()
    former = signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        bell.close()
        _heard.thread.join()
        _heard.thread, _heard.sockets = None, ()
        ear.close()
        for number, handler in before.items():
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            # A second Ctrl-C while Python takes things down needs no traceback either.
            default = _heard.first is not None and number == signal.SIGINT and handler is not signal.SIG_IGN
            signal.signal(number, signal.SIG_DFL if default or handler is None else handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _pass_on(number: int, frame: FrameType | None) -> None:
    os.kill(os.getppid(), number)


def _listen(ear: socket.socket, again: bool) -> None:
    told = False
    while True:
        waits = _heard.first is not None and signal.getsignal(_heard.first) is _stop
        patience = PATIENCE if waits else None if told or _heard.first is None else TOLD
        ear.settimeout(None if patience is None else max(0.01, _heard.at + patience - time.monotonic()))
        try:
            heard = ear.recv(64)
        except TimeoutError:
            if _heard.first is not None and signal.getsignal(_heard.first) is _stop:
                os._exit(ended(_heard.first, again))
            if _heard.first is not None and not told:
                told = True
                say(f"heard {name(_heard.first)}: saves and stops as soon as it can; a second Ctrl-C ends it at once")
            continue
        if not heard:
            return
        numbers = [signal.Signals(number) for number in heard if number in STOPS]
        if not numbers:
            continue
        if _heard.first is None:
            _heard.first, _heard.at = numbers[0], time.monotonic()
        elif signal.SIGINT in numbers and time.monotonic() - _heard.at > ECHO:
            rest = "; the same command goes on from what was saved" if again else ""
            say(f"ended at once by a second Ctrl-C{rest}")
            os._exit(128 + signal.SIGINT)


def _forget() -> None:
    """A forked copy of a command has no ear, and ends by a signal as processes do."""
    if _heard.thread is not None:
        signal.set_wakeup_fd(-1)
        # Whoever outlives the command would keep its thread waiting.
        for each in _heard.sockets:
            each.close()
        _heard.thread, _heard.first, _heard.sockets = None, None, ()
        for number in STOPS:
            if signal.getsignal(number) is _stop:
                signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget)
