"""How a command ends: exit codes, and one message instead of a traceback for what a person can mend."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

from callbacks import NonFiniteLoss, Preempted
from callbacks.liveness import Liveness
from datamodules import DataError
from exp.checkpoint_contents import misfit
from exp.checkpoint_io import CheckpointError
from exp.run_directory import RunError
from exp.signals import Stopped, name, say
from exp.unwritable import unwritable

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
        place = "" if stop.saved else " from the last checkpoint"
        say(f"stopped by {name(stop.signal)} at step {stop.step}; the same command goes on{place}")
    except EXPECTED as error:
        outcome.code = 1
        print(f"exp: {error}", file=sys.stderr)
    except Exception as error:
        outcome.code = 1
        if stopped := next((each for each in _causes(error) if isinstance(each, Stopped)), None):
            raise stopped from None
        if cause := _expected_cause(error):
            print(f"exp: {cause}", file=sys.stderr)
        elif told := unwritable(error):
            print(f"exp: {told}", file=sys.stderr)
        elif cli.trainer.world_size > 1 and _waited_in_vain(error):
            missed = [each.missed() for each in cli.trainer.callbacks if isinstance(each, Liveness)]  # type: ignore[attr-defined]
            say("; ".join([*missed, "the job ends"]))
            _tell_dead_processes(cli)
        elif told := misfit(error):
            print(f"exp: {told}", file=sys.stderr)
        else:
            traceback.print_exc()
            _tell_dead_processes(cli)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _expected_cause(error: BaseException) -> BaseException | None:
    return next((cause for cause in _causes(error) if isinstance(cause, EXPECTED) or _refusal(cause)), None)


def _waited_in_vain(error: BaseException) -> bool:
    """Whether processes lost patience with one of them; gloo has no class of its own for that."""
    return any(
        isinstance(cause, (dist.DistStoreError, dist.DistNetworkError))
        or (isinstance(cause, RuntimeError) and "timed out" in str(cause).lower())
        for cause in _causes(error)
    )


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
