"""How a command ends: exit codes, and one message instead of a traceback for what a person can mend."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from callbacks import NonFiniteLoss, Preempted
from datamodules import DataError
from exp.checkpoint_contents import misfit
from exp.checkpoint_io import CheckpointError
from exp.run_directory import RunError

if TYPE_CHECKING:
    from exp.cli import Cli

# What a person can mend: the message says how, and a traceback would hide it.
EXPECTED = (DataError, CheckpointError, RunError, NonFiniteLoss, FloatingPointError)

OURS = ("models", "lightning_modules", "datamodules", "callbacks", "exp")


@dataclass
class Outcome:
    """The exit code of a command."""

    code: int = 0


@contextmanager
def exit_code(cli: Cli) -> Iterator[Outcome]:
    """Turns expected errors into one message and exit code 1, and a requested stop into its own code.

    Other errors show their traceback; if a process of the job has died, that is said last.
    """
    outcome = Outcome()
    try:
        yield outcome
    except Preempted as stop:
        outcome.code = int(stop.code or 0)
        print("exp: stopped by signal; run the same command again to go on", file=sys.stderr)
    except EXPECTED as error:
        outcome.code = 1
        print(f"exp: {error}", file=sys.stderr)
    except Exception as error:
        outcome.code = 1
        if cause := _expected_cause(error):
            print(f"exp: {cause}", file=sys.stderr)
        elif told := misfit(error):
            print(f"exp: {told}", file=sys.stderr)
        else:
            traceback.print_exc()
            _tell_dead_processes(cli)


def _expected_cause(error: BaseException) -> BaseException | None:
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, EXPECTED) or _refusal(cause)):
        cause = cause.__cause__ or cause.__context__
    return cause


def _refusal(error: BaseException) -> bool:
    """Whether exp's own code raised a ValueError: it refuses a value that the config gave."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return isinstance(error, ValueError) and module.split(".")[0] in OURS


def _tell_dead_processes(cli: Cli) -> None:
    launcher = getattr(cli, "trainer", None) and cli.trainer.strategy.launcher
    for i, process in enumerate(getattr(launcher, "procs", [])):
        code = process.poll()
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            print(f"exp: the process of rank {i + 1} {how}; the job ends", file=sys.stderr)
