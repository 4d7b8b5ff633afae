"""The dispatcher: maps a command's name to its file, and imports torch only when a command needs it."""

from __future__ import annotations

import difflib
import gc
import importlib
import locale
import os
import signal
import sys
from types import ModuleType

import exp
from exp.output import forgive
from exp.processes import join_main
from exp.signals import Stopped, ended, listening
from exp.unwritable import unwritable

COMMANDS = {
    "fit": "train a network, then test its best checkpoint",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint on the test split",
    "predict": "label image files or folders with a checkpoint",
    "export": "write a network into a file that other programs run: ONNX, torch.export",
    "compare": "run a claim: arms x seeds, a table with intervals, a verdict",
    "prune": "make a trained network smaller, train it further, and set it against training from scratch",
    "search": "find the best architectures of a supernet within limits on size, compute or latency",
    "profile": "measure what a network costs: parameters, multiply-adds, latency, memory",
    "runs": "list the runs that there are: how each stands, how good it is, what it costs",
    "report": "set runs side by side in one HTML page: curves, configs, costs, pictures",
    "configs": "list the configs that come with exp, by task",
    "convert": "translate an official checkpoint to exp's layout, or back",
    "completion": "print what makes a shell complete commands, configs and keys",
}
# Run again, they go on where they were.
GO_ON = ("fit", "compare", "prune", "search")


def usage() -> str:
    """The text of `python -m exp --help`: every command in one line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: exp COMMAND [options], or python -m exp COMMAND [options]",
            "",
            "One experiment framework for efficient vision.",
            "",
            *lines,
            "",
            "`exp fit NAME` trains a config that `exp configs` lists; `exp predict RUN images/` looks at pictures.",
            "exp COMMAND --help lists a command's options; --version prints the version.",
        ]
    )


def main(argv: list[str]) -> int:
    """Runs one command and returns its exit code (2 for a mistyped command, 128 + n for one ended by signal n)."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(exp.__version__)
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(COMMANDS)}."
        print(f"exp: unknown command '{command}': {hint}", file=sys.stderr)
        return 2
    join_main()
    if command == "fit" and "SLURM_JOB_ID" in os.environ:
        # A job may be preempted while it still imports torch; `Preemption` takes the signal up when it can save.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    from exp import helping
    from exp.home import NoHomeError, argument_at_home
    from exp.words import Unmeant, spelled_out

    try:
        rest = spelled_out(command, [argument_at_home(argument) for argument in rest])
    except (NoHomeError, Unmeant) as error:
        print(f"exp: {error}", file=sys.stderr)
        return 2
    if command in helping.COMMANDS:
        if helping.wants_help(rest):
            forgive()
            return _help(command, rest)
        rest = helping.in_full(rest)
    if command in ("fit", "prune", "runs"):
        forgive()
    again = command in GO_ON
    try:
        with listening(again):
            return _imported(command).main(rest)
    except Stopped as stop:
        return ended(stop.signal, again)
    except OSError as error:
        told = unwritable(error)
        if told is None:
            raise
        print(f"exp: {told}", file=sys.stderr)
        return 1


def _imported(command: str) -> ModuleType:
    """The module of a command.

    What its imports make stays, a million objects: to look for garbage among them takes a sixth of the start.
    """
    gc.disable()
    try:
        return importlib.import_module(f"exp.{command}")
    finally:
        gc.freeze()
        gc.enable()


def _help(command: str, argv: list[str]) -> int:
    from exp.helping import Unlisted, help_text

    try:
        print(help_text(command, argv))
    except Unlisted as error:
        print(f"exp: {error}", file=sys.stderr)
        return 2
    return 0


def speak_utf8() -> None:
    """Starts Python anew, with names of files and texts in UTF-8, where the locale has another encoding."""
    if sys.getfilesystemencoding() != "utf-8" or locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"):
        # For the processes that it starts, and for itself, which may have been told to look at no environment.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def script() -> None:
    """What the command `exp` runs."""
    speak_utf8()
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    script()
