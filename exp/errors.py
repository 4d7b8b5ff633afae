"""How a command ends: exit codes, and one message instead of a traceback for what a person can mend."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import NonFiniteLoss, Preempted
from callbacks.liveness import Liveness
from datamodules import DataError
from exp.checkpoint_contents import misfit
from exp.checkpoint_io import CheckpointError
from exp.faults import fault
from exp.run_directory import RunError
from exp.signals import Stopped, name, say
from exp.unwritable import causes, unwritable
from models.mistakes import Mistake

if TYPE_CHECKING:
    from exp.cli import Cli

# What a person can mend: the message says how, and a traceback would hide it.
EXPECTED = (Mistake, DataError, CheckpointError, RunError, NonFiniteLoss, FloatingPointError, MisconfigurationException)


@dataclass
class Outcome:
    """The exit code of a command."""

    code: int = 0


@contextmanager
def exit_code(cli: Cli) -> Iterator[Outcome]:
    """Turns expected errors into one message and exit code 1, and a requested stop into its own code.

    Of other errors the traceback is kept in a file; if a process of the job has died, that is said last.
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
        print(f"exp: {_said(error)}", file=sys.stderr)
    except Exception as error:
        outcome.code = 1
        if stopped := next((each for each in causes(error) if isinstance(each, Stopped)), None):
            raise stopped from None
        if cause := next((cause for cause in causes(error) if isinstance(cause, EXPECTED)), None):
            print(f"exp: {_said(cause)}", file=sys.stderr)
        elif told := unwritable(error):
            print(f"exp: {told}", file=sys.stderr)
        elif cli.trainer.world_size > 1 and _waited_in_vain(error):
            missed = [each.missed() for each in cli.trainer.callbacks if isinstance(each, Liveness)]  # type: ignore[attr-defined]
            say("; ".join([*missed, "the job ends"]))
            _tell_dead_processes(cli)
        elif told := misfit(error):
            print(f"exp: {told}", file=sys.stderr)
        else:
            folder = Path(cli.trainer.default_root_dir)
            # Before a run has its place, this is where the command was started.
            print(f"exp: {fault(error, None if folder == Path.cwd() else folder)}", file=sys.stderr)
            _tell_dead_processes(cli)


def _said(error: BaseException) -> str:
    """What an expected error says; of what a checkpoint holds and does not fit, with the file."""
    return (misfit(error) if isinstance(error, Mistake) else None) or str(error)


def _waited_in_vain(error: BaseException) -> bool:
    """Whether processes lost patience with one of them; gloo has no class of its own for that."""
    return any(
        isinstance(cause, (dist.DistStoreError, dist.DistNetworkError))
        or (isinstance(cause, RuntimeError) and "timed out" in str(cause).lower())
        for cause in causes(error)
    )


def _tell_dead_processes(cli: Cli) -> None:
    launcher = getattr(cli, "trainer", None) and cli.trainer.strategy.launcher
    for i, process in enumerate(getattr(launcher, "procs", [])):
        code = process.poll()
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            print(f"exp: the process of rank {i + 1} {how}; the job ends", file=sys.stderr)
