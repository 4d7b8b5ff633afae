"""What `predict` spends on an image: thresholds for a budget, executed operators, time, and who left where."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from callbacks import Cost, ExitCurve
from exp.cli import Cli, UsageError
from exp.evaluation import output_folder
from exp.summary import millions
from models.anytime import ExitThresholds, MultiExit, Policy, exit_costs, run


def policy_for(cli: Cli, checkpoint: Path, content: dict[str, Any]) -> Policy | None:
    """When images leave the network, by `--budget`; None without one.

    Args:
        cli: the command.
        checkpoint: where the checkpoint lies.
        content: what is in it.

    Raises:
        UsageError: a budget that cannot be obeyed; the message says why, and what can be done.
    """
    budget, file = cli.config.budget, cli.config.thresholds
    if budget is None:
        if file is not None:
            raise UsageError("--thresholds says when images leave for a --budget: give both, or none")
        return None
    if not 0 < budget <= 1:
        raise UsageError(f"--budget {budget:g}: it is a share of the last exit's multiply-adds, in (0, 1]")
    network = cli.model.network
    if not (isinstance(network, MultiExit) and network.num_exits > 1 and hasattr(cli.model, "policy")):
        raise UsageError(
            f"--budget: {type(network).__name__} has no exits where images could leave; leave --budget out, or train "
            "a network with exits, such as RANet or DVT"
        )
    if file is None:
        plain = content.get("callbacks", {}).get(ExitCurve().state_key)
        if not plain:
            solved = output_folder(checkpoint, "validate") / "thresholds.json"
            option = "--ckpt_path" if cli.config.ckpt_path else "--weights"
            raise UsageError(
                f"--budget: {checkpoint} holds no thresholds, as no validation preceded it: solve them by "
                f"`python -m exp validate {option} {checkpoint}`, then add --thresholds {solved}"
            )
    else:
        plain = _read(file)
    try:
        policy = ExitThresholds.from_plain(plain).policy(budget)
        policy.check(network.num_exits)
    except ValueError as error:
        raise UsageError(f"--budget {budget:g}, {file or checkpoint}: {error}") from error
    return policy


def _read(file: str) -> dict[str, Any]:
    try:
        return json.loads(Path(file).read_text())
    except OSError as error:
        raise UsageError(f"--thresholds {file}: {error.strerror}; `python -m exp validate` writes it") from error
    except ValueError as error:
        raise UsageError(f"--thresholds {file}: not JSON ({error}); `python -m exp validate` writes it") from error


class Spending(Cost):
    """Counts and times what prediction does.

    Operators are counted in a run of their own, on the first images, for counting takes time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._started = 0.0

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Starts the clock."""
        self._keep(pl_module, batch, batch_idx)
        _wait(pl_module.device)
        self._started = time.perf_counter()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: dict[str, Any], *args: Any
    ) -> None:
        """Stops the clock; a task that has a deadline to keep has timed its images itself, trial runs left out."""
        _wait(pl_module.device)
        self.seconds += sum(outputs["seconds"]) if "seconds" in outputs else time.perf_counter() - self._started

    def report(self, cli: Cli, exits: Tensor | None, images: int) -> dict[str, Any]:
        """What was spent, as plain numbers.

        Args:
            cli: the command, after its prediction.
            exits: the exit of each image, if there was a budget.
            images: how many there were.
        """
        network, policy = cli.model.network, getattr(cli.model, "policy", None)
        ran: dict[str, float] = {}
        if getattr(cli.model, "costs_one_forward", True):
            ran = self.measure(network if policy is None else _EarlyExit(network, policy))
        found: dict[str, Any] = {
            "images": images,
            "executed_macs": ran.get("macs"),
            "executed_samples": ran.get("macs_samples"),
            "seconds_per_image": self.seconds / images,
        }
        if exits is not None:
            assert self._inputs is not None
            costs = exit_costs(network, self._inputs[0].shape[1:])
            shares = (exits.bincount(minlength=len(costs)).double() / images).tolist()
            spent = sum(share * cost for share, cost in zip(shares, costs, strict=True))
            found |= {
                "budget": cli.config.budget,
                "share": spent / costs[-1],
                "macs": spent,
                "exit_macs": costs,
                "exit_shares": shares,
            }
        return found


class _EarlyExit(nn.Module):
    """Early exit as a network, to count what it executes."""

    def __init__(self, network: nn.Module, policy: Policy) -> None:
        super().__init__()
        self.network, self.policy = network, policy

    def forward(self, images: Tensor) -> Tensor:
        assert isinstance(self.network, MultiExit)
        return run(self.network, images, self.policy)[0]


def print_spending(spent: dict[str, Any], console: Console) -> None:
    """Says what `Spending.report` found."""
    if "budget" in spent:
        table = Table("exit", "images", "multiply-adds", box=None)
        for exit, (share, cost) in enumerate(zip(spent["exit_shares"], spent["exit_macs"], strict=True)):
            table.add_row(str(exit), f"{share:.1%}", millions(cost))
        console.print(table, highlight=False)
        console.print(
            f"by the exits taken: {millions(spent['macs'])} multiply-adds an image, {spent['share']:.1%} of the last "
            f"exit's, for a budget of {spent['budget']:.1%}",
            highlight=False,
            soft_wrap=True,
        )
    counted = ""
    if spent["executed_macs"] is not None:
        counted = (
            f"executed: {millions(spent['executed_macs'])} multiply-adds an image (operators that ran for the first "
            f"{spent['executed_samples']} images), "
        )
    milliseconds = f"{spent['seconds_per_image'] * 1e3:.3f} ms an image in the network"
    console.print(counted + milliseconds, highlight=False, soft_wrap=True)


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given; the CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
