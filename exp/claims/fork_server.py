"""Starts fits as copies of a process that has all imported: to import it takes longer than to train many a cell."""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import threadpoolctl
import torch

import exp.fit  # noqa: F401  what every copy needs
from callbacks.reports import reports_of
from exp.__main__ import main
from exp.processes import die_with_parent
from exp.tracking import preload
from lightning_modules import Task

# How often, in seconds, it looks whether a copy has ended.
INTERVAL = 0.05


class ServerLost(RuntimeError):
    """The process that starts fits has ended, and its fits with it."""


@dataclass(frozen=True)
class Start:
    """One fit.

    Args:
        arguments: what follows the command's name.
        log: what it prints is added to this file.
        environment: all of its variables.
        threads: of the libraries that compute; None leaves them as they are.
        cores: the processor's cores that it and its processes run on; None leaves them as they are.
        command: the command's name.
    """

    arguments: list[str]
    log: str
    environment: dict[str, str]
    threads: int | None = None
    cores: list[int] | None = None
    command: str = "fit"


class ForkServer:
    """A process apart, which forks a copy of itself for each fit; made before anything is computed here.

    It has no threads of ours, touches no GPU and computes nothing, so that its copies may do all of that, whatever this
    process does meanwhile. It ends when this process does, however it does, and its fits with it. Ctrl-C at a terminal
    does not reach it.

    Args:
        tracked: whether its fits have W&B runs.
    """

    def __init__(self, tracked: bool) -> None:
        self._socket, theirs = socket.socketpair()
        self._unread = b""
        self._ended: list[tuple[int, int]] = []
        parent = os.getpid()

        def serve() -> NoReturn:
            self._socket.close()
            _serve(theirs, tracked)

        self._pid = _fork(serve, parent)
        theirs.close()

    def start(self, fit: Start) -> int:
        """Starts a fit, in a session of its own; returns its process id.

        Raises:
            ServerLost: the server has ended.
        """
        try:
            self._socket.sendall(json.dumps(asdict(fit)).encode() + b"\n")
        except OSError:
            raise ServerLost from None
        while True:
            for pid, code in self._told(wait=True):
                if code is None:
                    return pid
                self._ended.append((pid, code))

    def ended(self) -> list[tuple[int, int]]:
        """The fits that have ended since the last call: process id and exit code (negative: killed by that signal).

        Raises:
            ServerLost: the server has ended.
        """
        found = [*self._ended, *((pid, code) for pid, code in self._told() if code is not None)]
        self._ended = []
        return found

    def close(self) -> None:
        """Ends the server, and with it what still runs."""
        self._socket.close()
        os.waitpid(self._pid, 0)

    def _told(self, wait: bool = False) -> list[tuple[int, int | None]]:
        """What the server has said: of each fit, its process id first, and with its exit code in the end."""
        if wait or select.select([self._socket], [], [], 0)[0]:
            said = self._socket.recv(1 << 16)
            if not said:
                raise ServerLost
            self._unread += said
        *lines, self._unread = self._unread.split(b"\n")
        return [(pid, code) for pid, code in map(json.loads, lines)]


def _fork(run: Callable[[], NoReturn], parent: int) -> int:
    """A copy of this process that does something else, in a session of its own, and ends with this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        die_with_parent()
        # It may have ended before this was asked for.
        if os.getppid() == parent:
            run()
    finally:
        os._exit(1)


def _serve(requests: socket.socket, tracked: bool) -> NoReturn:
    """Forks a copy for each request, and says how each has ended, until nobody is there to ask."""
    reports_of(Task)
    if tracked:
        preload()
    # What is alive now is shared by all copies: their garbage collectors need not look at it.
    gc.collect()
    gc.freeze()
    unread = b""
    running: set[int] = set()
    here = os.getpid()
    while True:
        if select.select([requests], [], [], INTERVAL if running else None)[0]:
            asked = requests.recv(1 << 16)
            if not asked:
                os._exit(0)
            *lines, unread = (unread + asked).split(b"\n")
            for line in lines:
                fit = Start(**json.loads(line))
                pid = _fork(lambda fit=fit: _fit(fit, requests), here)  # type: ignore[misc]
                running.add(pid)
                _say(requests, pid, None)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                _say(requests, pid, os.waitstatus_to_exitcode(status))


def _say(requests: socket.socket, pid: int, code: int | None) -> None:
    try:
        requests.sendall(json.dumps([pid, code]).encode() + b"\n")
    except OSError:
        os._exit(0)


def _fit(fit: Start, requests: socket.socket) -> NoReturn:
    """What `python -m exp COMMAND` does, from its environment to its exit code."""
    requests.close()
    # What was to be cleared away when the process ended that this is a copy of is still in use.
    atexit._clear()
    _print_to(fit.log)
    os.environ.clear()
    os.environ.update(fit.environment)
    # Lightning's launcher starts further processes of a job by these.
    sys.argv[1:] = [fit.command, *fit.arguments]
    if fit.cores is not None:
        os.sched_setaffinity(0, fit.cores)
    if fit.threads is not None:
        threadpoolctl.threadpool_limits(fit.threads)
        torch.set_num_threads(fit.threads)
    code: Any = 1
    try:
        code = main([fit.command, *fit.arguments])
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else int(code is not None))


def _print_to(log: str) -> None:
    """Has this process read nothing, and print to the end of a file."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for descriptor, place in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, place)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
