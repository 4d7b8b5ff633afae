"""`search` behind its options: loads, searches with helpers, writes."""

from __future__ import annotations

import argparse
import os

import torch

from exp.cli import Cli
from exp.errors import exit_code
from exp.quiet import silence
from exp.searching.search_run import Search
from exp.searching.workers import Helpers, helps, use_threads
from exp.searching.written import write_result
from exp.signals import leads
from exp.weights import start_from, to_evaluate


def run(options: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    """Searches; returns the exit code.

    Args:
        options: Of the search.
        rest: Those of `fit`, which say what network, data and weights there are.
        argv: Both, as they were typed.
    """
    silence()
    jobs = 1 if helps() or not leads() else options.jobs or _jobs()
    helpers = Helpers(jobs)
    try:
        cli = Cli(rest, "search")
        with exit_code(cli) as outcome:
            checkpoint = to_evaluate(cli)
            if cli.config.ckpt_path is not None:
                start_from(cli, checkpoint)
            # A result must not depend on how many processes share the machine.
            threads = cli.config.threads or 1
            use_threads(threads)
            first = leads() and not helps()
            search = Search(cli, options, checkpoint, first)
            if first:
                print(search.told)
                helpers.start(argv, threads, search.folder / "helpers")
            rows = search.run()
            if first:
                write_result(search, rows)
    finally:
        problem = helpers.close()
    if problem and not outcome.code:
        print(f"exp: a helper ended early, and the others did its work: {problem}")
    return outcome.code


def _jobs() -> int:
    """A process for each GPU, or for each core that there is for this one; of a job, those that the job has started."""
    if int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        return 1
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
